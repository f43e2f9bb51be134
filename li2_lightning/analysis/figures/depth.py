"""The hidden layers of deeper networks over the step: what reaches each of them, and what its nodes have learned."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.curves import draw_legend, explain, set_step_axis, with_rows
from li2_lightning.analysis.figures.style import GREY, curve_style, draw_band, new_figure
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, groups_of_seeds, task_name
from li2_lightning.theory.stages import layer_column

PANELS = {
    "gradient/independence": "cos(G_l, ỸỸᵀF̃_l)",
    "features/purity": "purity, by operands",
    "features/label_purity": "purity, by labels",
    "features/label_share": "share between classes",
}
"""The columns with a curve for each layer, and the names of their axes."""

MOST_SETTINGS = 6


@FIGURES.register("fig09_depth")
@FIGURES.register("layers")
def layers(runs: list[Run]) -> Figure:
    """A column of panels for each setting: accuracy, and below it `PANELS` with a curve for each hidden layer.

    A vertical line is the median step at which a layer left stage I, where at least half of the seeds did.

    Raises:
        InputError: no run has the columns of the callback ``depth``, or the runs have more than six settings.
    """
    runs = with_rows(runs, (layer_column("gradient/independence", 1),))
    groups = groups_of_seeds(runs)
    if len(groups) > MOST_SETTINGS:
        raise InputError(
            f"The runs have {len(groups)} different settings; up to {MOST_SETTINGS} fit beside each other."
        )
    counts = {label: _layers(group) for label, group in groups.items()}
    styles = {f"layer {number}": curve_style(number - 1, 3) for number in range(1, max(counts.values()) + 1)}
    figure = new_figure(max(7, 1 + 3.6 * len(groups)), 2.1 * (1 + len(PANELS)) + 1)
    grid = figure.subplots(1 + len(PANELS), len(groups), squeeze=False, sharey="row")
    for column, (label, group) in enumerate(groups.items()):
        top, *below = grid[:, column]
        top.set_title(label or task_name(group[0]), loc="left", fontsize=10)
        draw_band(top, group, "test/accuracy", "test", color=GREY)
        draw_band(top, group, "train/accuracy", "train", color=GREY, linestyle=":", linewidth=0.9)
        for axes, name in zip(below, PANELS, strict=True):
            for (layer, style), number in zip(styles.items(), range(1, counts[label] + 1), strict=False):
                draw_band(axes, group, layer_column(name, number), layer, **style)
                if name == "gradient/independence":
                    _mark_stage_two(axes, group, number, str(style["color"]))
        for axes in grid[:, column]:
            set_step_axis(axes, group)
            axes.grid(alpha=0.25)
        below[-1].set_xlabel("step (optimizer updates)")
    for axes, title in zip(grid[:, 0], ("test accuracy", *PANELS.values()), strict=True):
        axes.set_ylabel(title)
    draw_legend(figure, styles, with_train=True, beside=1 + len(styles))
    notes = "; ".join(filter(None, [explain(runs), "vertical line: a layer leaves stage I"]))
    figure.suptitle(notes.replace("; ", "\n" if figure.get_figwidth() < 11 else "; "), fontsize=9)
    return figure


def _layers(group: Sequence[Run]) -> int:
    """The number of hidden layers that were measured."""
    names = (layer_column("gradient/independence", number) for number in itertools.count(1))
    return len(list(itertools.takewhile(lambda name: any(name in run.metrics for run in group), names)))


def _mark_stage_two(axes: Axes, group: Sequence[Run], number: int, color: str) -> None:
    steps = [run.first_step(layer_column("stage/index", number), 2) for run in group]
    median = np.median([np.inf if step is None else step for step in steps])
    if np.isfinite(median):
        axes.axvline(float(median), color=color, linewidth=1, linestyle=":")
