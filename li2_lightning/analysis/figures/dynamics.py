"""Learning over the step: accuracy, G_F, features, updates, with the stages shaded and seeds as bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.curves import with_rows
from li2_lightning.analysis.figures.style import (
    BAND,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    draw_band,
    headline,
    last_step,
    legend_above,
    logarithmic,
    new_figure,
    shade_stages,
    span,
    transition_steps,
)
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, groups_of_seeds

MOST_GROUPS = 4


@FIGURES.register("fig03_weight_decay")
@FIGURES.register("fig03_no_weight_decay")
def dynamics(runs: list[Run]) -> Figure:
    """Six panels over the step for each group of seeds: the four of report.png, the lazy kernel, and the alignments.

    A panel has the same scale in all groups.

    Raises:
        InputError: more than four groups, or no run with two rows.
    """
    runs = with_rows(runs, ())
    groups = groups_of_seeds(runs)
    if len(groups) > MOST_GROUPS:
        raise InputError(
            f"The runs fall into {len(groups)} groups of settings; this picture shows up to {MOST_GROUPS}."
        )
    figure = new_figure(15, 7.2 * len(groups))
    above: list[Axes] = []
    for part, (label, group) in zip(
        figure.subfigures(len(groups), 1, squeeze=False)[:, 0], groups.items(), strict=True
    ):
        panels = draw_panels(part, group, (*PANELS, _draw_kernel, _draw_alignment), columns=3)
        part.suptitle("\n".join([*([label] if label else []), headline(group), caption(group)]), fontsize=11)
        for axes, first in zip(panels, above, strict=False):
            _share_scale(axes, first)
        above = above or panels
    return figure


def draw_panels(
    part: Figure | SubFigure,
    runs: Sequence[Run],
    panels: Sequence[Callable[[Axes, Sequence[Run]], None]],
    columns: int,
    places: Mapping[str, float] | None = None,
) -> list[Axes]:
    """Draw panels of one group of runs, ``columns`` in a row, with the stages shaded; return their left axes.

    Args:
        places: for a `fixed_figure`, the arguments of matplotlib's GridSpec that place the frames.
    """
    rows = -(-len(panels) // columns)
    grid = part.subplots(rows, columns, sharex=True, squeeze=False, gridspec_kw=dict(places or {}))
    last = last_step(runs)
    for axes, draw in zip(grid.ravel(), panels, strict=True):
        draw(axes, runs)
        axes.set_xlim(0, max(last, 1))
        axes.grid(alpha=0.25)
        shade_stages(axes, runs, last)
    for axes in grid[-1]:
        axes.set_xlabel("step (optimizer updates)")
    # The label of a right-hand axis stays clear of that of the next panel.
    for axes in part.axes:
        axes.yaxis.labelpad = 1
    return list(grid.ravel())


def caption(runs: Sequence[Run]) -> str:
    """The meaning of shades and bands, and how many seeds entered stages II and III."""
    lines = [BAND] if len(runs) > 1 else []
    followed = [run for run in runs if run.stages is not None]
    if not followed:
        return "; ".join(lines)
    lines.append("shaded: stages I lazy, II independent, III interactive")
    stalled = sum(bool(run.stages and run.stages["stalled"]) for run in followed)
    if len(followed) == 1:
        return "; ".join([*lines, *(["stalled, G_F lost both alignments"] if stalled else [])])
    for stage in (2, 3):
        if steps := transition_steps(followed, stage):
            lines.append(f"{stage * 'I'} from {np.median(steps):g} ({span(steps)}) in {len(steps)} of {len(followed)}")
    return "; ".join([*lines, *([f"{stalled} of {len(followed)} stalled"] if stalled else [])])


def _share_scale(axes: Axes, first: Axes) -> None:
    low, high = zip(axes.get_ylim(), first.get_ylim(), strict=True)
    for each in (axes, first):
        each.set_ylim(min(low), max(high))


def _draw_learning(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Accuracy and loss", loc="left", fontsize=10, pad=40)
    right = axes.twinx()
    draw_band(axes, runs, "train/accuracy", "train accuracy", color=BLUE)
    draw_band(axes, runs, "test/accuracy", "test accuracy", color=ORANGE, linestyle="--")
    draw_band(right, runs, "train/loss", "train loss (right)", color=BLUE, linestyle=":")
    draw_band(right, runs, "test/loss", "test loss (right)", color=ORANGE, linestyle="-.")
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("accuracy")
    right.set_ylabel("loss")
    logarithmic(right)
    legend_above(axes, right)


def _draw_gradient(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Backpropagated gradient G_F", loc="left", fontsize=10, pad=40)
    right = axes.twinx()
    draw_band(axes, runs, "gradient/norm", "‖G_F‖", color=GREY)
    draw_band(right, runs, "gradient/independence", "independence (right)", color=BLUE, linestyle="--")
    draw_band(right, runs, "gradient/coupling", "coupling (right)", color=ORANGE, linestyle="-.")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("‖G_F‖")
    right.set_ylim(-1.02, 1.02)
    right.set_ylabel("cosine")
    legend_above(axes, right)


def _draw_features(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Features", loc="left", fontsize=10, pad=40)
    draw_band(axes, runs, "energy/mean", "mean energy E", color=GREEN)
    draw_band(axes, runs, "energy/max", "max energy E", color=GREEN, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("energy at unit norm")
    right = axes.twinx()
    right.set_ylim(0, 1.02)
    if draw_band(right, runs, "features/purity", "purity (right)", color=PURPLE, linestyle="--"):
        right.set_ylabel("purity")
    else:
        right.set_yticks([])
    legend_above(axes, right)


def _draw_updates(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Relative updates ‖X_t − X_{t−1}‖/‖X_{t−1}‖", loc="left", fontsize=10, pad=40)
    draw_band(axes, runs, "update/hidden", "hidden (W)", color=BLUE)
    draw_band(axes, runs, "update/output", "output (V)", color=ORANGE, linestyle="--")
    logarithmic(axes)
    axes.set_ylabel("relative update")
    legend_above(axes)


def _draw_kernel(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Distance from the lazy kernel", loc="left", fontsize=10, pad=40)
    draw_band(axes, runs, "features/gram_offdiagonal", "off-diagonal of F̃ᵀF̃", color=BLUE)
    draw_band(axes, runs, "features/kernel_distance", "FFᵀ from aI + b11ᵀ", color=ORANGE, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("relative deviation")
    legend_above(axes)


def _draw_alignment(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Alignments", loc="left", fontsize=10, pad=40)
    draw_band(axes, runs, "gradient/residual_alignment", "cos(R, Ỹ)", color=BLUE)
    draw_band(axes, runs, "gradient/readout_alignment", "cos(V, F̃ᵀỸ)", color=ORANGE, linestyle="--")
    draw_band(axes, runs, "gradient/readout_equilibrium", "cos(V, F̃ᵀR)", color=GREEN, linestyle="-.")
    axes.set_ylim(-1.02, 1.02)
    axes.set_ylabel("cosine")
    legend_above(axes)


PANELS = (_draw_learning, _draw_gradient, _draw_features, _draw_updates)
"""The panels of report.png."""
