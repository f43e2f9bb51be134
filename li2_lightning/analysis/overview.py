"""report.png: one run at a glance."""

from __future__ import annotations

from pathlib import Path

from li2_lightning.analysis.figures.dynamics import PANELS, caption, draw_panels
from li2_lightning.analysis.figures.features import draw_panels as draw_feature_panels
from li2_lightning.analysis.figures.features import learned_nodes
from li2_lightning.analysis.figures.style import headline, new_figure, save
from li2_lightning.runs.load import load_run


def draw_overview(directory: Path) -> Path:
    """Draw ``report.png`` into a run directory from its files, and return its path.

    Four panels over the step show accuracy and loss, G_F, energy and purity, and updates, with the stages shaded. Below
    them are the learned features, if the run stored any.
    """
    run = load_run(directory)
    learned = learned_nodes(run) if (directory / "features" / "last.npz").exists() else None
    heights = [8.0, 4.2] if learned else [8.0]
    figure = new_figure(12, sum(heights))
    # In one figure the colour bar would narrow the panels above it.
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if learned:
        left, right = parts[1].subplots(1, 2)
        draw_feature_panels(left, right, *learned)
    parts[0].suptitle(f"{headline([run])}\n{caption([run])}".strip(), fontsize=11)
    draw_panels(parts[0], [run], PANELS, columns=2)
    return save(figure, directory / "report.png")
