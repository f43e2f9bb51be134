"""report.png: one run at a glance."""

from __future__ import annotations

from pathlib import Path

from li2_lightning.analysis.figures.dynamics import PANELS, caption, draw_panels
from li2_lightning.analysis.figures.features import HEIGHT, NODES, SHARES, WIDTH, learned_nodes
from li2_lightning.analysis.figures.features import draw_panels as draw_feature_panels
from li2_lightning.analysis.figures.style import fixed_figure, headline, write_png
from li2_lightning.runs.load import load_run

# Inches: the height of the four panels, and the space below, above and between their frames.
PANELS_HEIGHT, BELOW, ABOVE, BETWEEN = 8.0, 0.6, 1.35, 1.0


def draw_overview(directory: Path) -> Path:
    """Draw ``report.png`` into a run directory from its files, and return its path.

    Four panels over the step show accuracy and loss, G_F, energy and purity, and updates, with the stages shaded. Below
    them are the learned features, if the run stored any.
    """
    run = load_run(directory)
    learned = learned_nodes(run) if (directory / "features" / "last.npz").exists() else None
    bottom = HEIGHT + 0.1 if learned else 0.0
    height = bottom + PANELS_HEIGHT
    figure = fixed_figure(WIDTH, height)
    if learned:
        draw_feature_panels(figure, *learned)
    figure.text(
        0.5, 1 - 0.1 / height, f"{headline([run])}\n{caption([run])}".strip(), fontsize=11, ha="center", va="top"
    )
    # The frames stand above those of the features.
    (left, width), (right, _) = SHARES, NODES
    places = {
        "left": left / WIDTH,
        "right": (right + width) / WIDTH,
        "bottom": (bottom + BELOW) / height,
        "top": 1 - ABOVE / height,
        "wspace": (right - left - width) / width,
        "hspace": 2 * BETWEEN / (PANELS_HEIGHT - BELOW - ABOVE - BETWEEN),
    }
    draw_panels(figure, [run], PANELS, columns=2, places=places)
    return write_png(figure, directory / "report.png")
