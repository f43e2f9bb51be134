"""report.png: one run at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from li2_lightning.analysis.block_maps import BlockMap, missing_maps
from li2_lightning.analysis.figures.dynamics import PANELS, caption, draw_panels
from li2_lightning.analysis.figures.features import HEIGHT, NODES, SHARES, WIDTH, learned_nodes
from li2_lightning.analysis.figures.features import draw_panels as draw_feature_panels
from li2_lightning.analysis.figures.style import GREY, add_panel, fixed_figure, headline, transition_steps, write_png
from li2_lightning.runs.load import load_run

# Inches: the height of the four panels, and the space below, above and between their frames.
PANELS_HEIGHT, BELOW, ABOVE, BETWEEN = 8.0, 0.6, 1.35, 1.0
# Inches: the height of the frames of the maps, and of the maps with what is above and below their frames.
FRAME, MAPS_HEIGHT = 2.4, 3.4
# What is missing, and whether the gradient turns to it.
MAPS = ("explained", "gradient")


def draw_overview(directory: Path) -> Path:
    """Draw ``report.png`` into a run directory from its files, and return its path.

    Four panels over the step show accuracy and loss, G_F, energy and purity, and updates, with the stages shaded. Below
    them are maps of steps × blocks, if the callback ``missing`` was on, and the learned features, if any were stored.
    """
    run = load_run(directory)
    learned = learned_nodes(run) if (directory / "features" / "last.npz").exists() else None
    maps = missing_maps(run)
    above_features = HEIGHT + 0.1 if learned else 0.0
    bottom = above_features + (MAPS_HEIGHT if maps else 0.0)
    height = bottom + PANELS_HEIGHT
    figure = fixed_figure(WIDTH, height)
    if learned:
        draw_feature_panels(figure, *learned)
    if maps:
        last, steps = int(run.metrics.index[-1]), [step for stage in (2, 3) for step in transition_steps([run], stage)]
        for (left, width), name in zip((SHARES, NODES), MAPS, strict=True):
            _draw_map(figure, maps[name], (left, above_features + BELOW, width, FRAME), last, steps)
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


def _draw_map(
    figure: Figure, of: BlockMap, place: tuple[float, float, float, float], last: int, transitions: Sequence[int]
) -> None:
    """Steps × blocks as colors from 0 to the largest value, with a dashed line at each stage transition.

    Args:
        place: left, bottom, width and height of the frame in inches.
        last: the end of the axis of steps.
    """
    left, bottom, width, height = place
    axes = add_panel(figure, left, bottom, width, height)
    values, blocks = of.values.T, len(of.labels)
    image = axes.pcolormesh(
        of.steps, np.arange(blocks), values, cmap="cividis", vmin=0, vmax=np.nanmax(values, initial=1e-12)
    )
    axes.set_title(of.title, loc="left", fontsize=10)
    axes.set_xlim(0, max(last, 1))
    axes.set_xlabel("step (optimizer updates)")
    axes.invert_yaxis()
    shown = range(0, blocks, max(1, blocks // 12))
    axes.set_yticks(shown, [of.labels[block] for block in shown], fontsize=8)
    for step in transitions:
        axes.axvline(step, color=GREY, linewidth=0.8, linestyle=(0, (4, 4)))
    scale = add_panel(figure, left + width + 0.12, bottom, 0.15, height)
    figure.colorbar(image, cax=scale).ax.tick_params(labelsize=8)
