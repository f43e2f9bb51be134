"""V initialized at zero or not: test accuracy, features, and steps to generalization, for each training fraction."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.curves import draw_legend, with_rows
from li2_lightning.analysis.figures.style import (
    BAND,
    MARKERS,
    curve_styles,
    draw_band,
    last_step,
    new_figure,
    stopped_early,
)
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, grouped, groups_of_seeds, task_name

SCALE, ACCURACY, LEVEL = "network.readout_init_scale", "test/accuracy", 0.9
FEATURES = ("energy/mean", "features/purity", "features/2/purity")
MOST_FRACTIONS = 8


@FIGURES.register("fig14_zero_init")
@FIGURES.register("fig15_zero_init")
@FIGURES.register("fig16_zero_init")
@FIGURES.register("fig17_zero_init_deep")
def zero_init(runs: list[Run]) -> Figure:
    """Above, test accuracy over the step for each training fraction; below, early features, and steps to accuracy .9.

    Raises:
        InputError: no rows, several tasks, or more than 8 training fractions.
    """
    runs = with_rows(runs, ())
    if len(tasks := sorted({task_name(run) for run in runs})) > 1:
        raise InputError(f"The runs are of several tasks ({', '.join(tasks)}); draw one at a time.")
    ordered = sorted(runs, key=lambda run: run.train_fraction)
    fractions = grouped(ordered, lambda run: round(run.train_fraction, 4))
    if len(fractions) > MOST_FRACTIONS:
        raise InputError(f"The runs have {len(fractions)} training fractions; up to {MOST_FRACTIONS} fit here.")
    styles = curve_styles(groups_of_seeds(runs, [SCALE]))
    features = [column for column in FEATURES if any(column in run.metrics for run in runs)]
    figure = new_figure(max(3.6 * len(fractions), 3.6 * (1 + len(features)), 7), 6.6)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for axes, (fraction, members) in zip(above.subplots(1, len(fractions), squeeze=False)[0], fractions.items(),
                                         strict=True):  # fmt: skip
        axes.set_title(f"n/N = {fraction:.3g}", loc="left", fontsize=10)
        _draw(axes, ACCURACY, members, styles)
        axes.set_ylim(-0.02, 1.02)
    panels = list(below.subplots(1, 1 + len(features), squeeze=False)[0])
    smallest = next(iter(fractions))
    for axes, column in zip(panels, features, strict=False):
        _draw(axes, column, fractions[smallest], styles)
        early = _early_steps(fractions[smallest])
        axes.set_title(f"n/N = {smallest:.3g}, the first {early} steps", loc="left", fontsize=10)
        axes.set_xlim(0, early)
        shown = np.concatenate([line.get_ydata()[np.asarray(line.get_xdata()) <= early] for line in axes.lines])
        axes.set_ylim(0, 1.1 * float(np.nanmax(shown)))
    _draw_steps(panels[-1], fractions, styles)
    draw_legend(figure, {label or "all": style for label, style in styles.items()}, with_train=False, beside=4)
    notes = f"{task_name(runs[0])}; {BAND}"
    if any(map(stopped_early, runs)):
        notes += "; a run that stopped at its test accuracy keeps its last value"
    figure.suptitle(notes.replace("; ", "\n" if figure.get_figwidth() < 9 else "; "), fontsize=9)
    return figure


def _draw(axes: Axes, column: str, members: list[Run], styles: dict[str, dict[str, object]]) -> None:
    for label, group in groups_of_seeds(members, [SCALE]).items():
        draw_band(axes, group, column, label, **(styles.get(label) or next(iter(styles.values()))))
    axes.set_ylabel(column)
    axes.set_xlabel("step (optimizer updates)")
    axes.set_xlim(0, last_step(members))
    axes.grid(alpha=0.25)


def _early_steps(members: list[Run]) -> int:
    """Four times the median step of training accuracy .99: by then the features of the lazy stage no longer change."""
    steps = [step for run in members if (step := run.first_step("train/accuracy", 0.99)) is not None]
    last = last_step(members)
    return min(last, 4 * max(10, int(np.median(steps)))) if steps else last


def _draw_steps(axes: Axes, fractions: dict[float, list[Run]], styles: dict[str, dict[str, object]]) -> None:
    """First step with test accuracy .9: a marker for each seed, at the top if there is none, and a line of medians."""
    longest = max(map(last_step, fractions.values()))
    never = 1.6 * longest
    for index, (label, style) in enumerate(styles.items()):
        medians = []
        for fraction, members in fractions.items():
            groups = groups_of_seeds(members, [SCALE])
            group = groups.get(label) or (groups[""] if "" in groups and len(styles) == 1 else [])
            steps = [run.first_step(ACCURACY, LEVEL) or never for run in group]
            axes.plot([fraction] * len(steps), steps, MARKERS[index], color=style["color"], markersize=5, alpha=0.7)
            medians.append((fraction, float(np.median(steps))) if steps else (fraction, np.nan))
        axes.plot(*zip(*medians, strict=True), linewidth=1.6, **style)  # type: ignore[arg-type]
    axes.axhspan(1.25 * longest, 2 * longest, color="0.9", zorder=0)
    axes.text(0.02, 0.97, f"not within {longest} steps", transform=axes.transAxes, va="top", fontsize=8)
    axes.set_yscale("log")
    for each in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        each(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.7)))
    axes.set_ylim(top=2 * longest)
    axes.set_title(f"steps to test accuracy {LEVEL:g}", loc="left", fontsize=10)
    axes.set_xlabel("training fraction n/N")
    axes.set_ylabel("step")
    axes.grid(alpha=0.25, which="both")
