"""Test accuracy and loss over the step, with a curve for each setting in which the runs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.style import (
    BAND,
    GREY,
    curve_styles,
    draw_band,
    last_step,
    logarithmic,
    new_figure,
    stopped_early,
)
from li2_lightning.errors import InputError, nearest
from li2_lightning.runs.load import Run, differing_settings, grouped, groups_of_seeds, task_name

FACETS = ("task", "data.train_fraction", "data.train_size", "data.critical_ratio", "data.split_file")
"""Runs that differ in these settings are drawn in panels beside each other; other settings make curves."""

MOST_CURVES, MOST_FACETS = 12, 16
LONG = 2000
"""Runs of this many steps or more have a logarithmic step axis, because memorizing takes a small part of them."""

LEARNING = ("test/accuracy", "test/loss")
LOGARITHMIC = ("train/loss", "test/loss", "update/eigengap")
BOUNDED = {"test/accuracy": (-0.02, 1.02), "features/purity": (0, 1.02)}


def curves(runs: list[Run], columns: Sequence[str] = LEARNING) -> Figure:
    """A row of panels for each column of metrics.csv: a panel for each task and split, a curve for each other setting.

    The settings that differ are read from the configs. Beside the test accuracy, a thin dotted line is the training
    accuracy.

    Raises:
        InputError: no run has rows or one of the columns, or there are too many curves or panels to tell apart.
    """
    runs = with_rows(runs, columns)
    facets = _facets(runs)
    keys = _curve_settings(facets.values())
    labels = list(groups_of_seeds(runs, keys))
    if len(labels) > MOST_CURVES:
        raise InputError(f"The runs have {len(labels)} different settings; {MOST_CURVES} curves can be told apart.")
    if len(facets) > MOST_FACETS:
        raise InputError(f"The runs have {len(facets)} tasks and splits; up to {MOST_FACETS} fit into one picture.")
    across = min(4, len(facets))
    bands = -(-len(facets) // across)
    figure = new_figure(max(6.5, 1 + 4.2 * across), (2.7 * len(columns) + 0.3) * bands + 1)
    grid = figure.subplots(bands * len(columns), across, squeeze=False)
    styles = curve_styles(labels)
    for index, (title, members) in enumerate(facets.items()):
        band, column = divmod(index, across)
        panels = list(grid[band * len(columns) : (band + 1) * len(columns), column])
        draw_curves(panels, columns, groups_of_seeds(runs, keys), members, styles)
        panels[0].set_title(title, loc="left", fontsize=10)
        panels[-1].set_xlabel("step (optimizer updates)")
        for axes in panels if column else ():
            axes.set_ylabel("")
    for axes in grid[(bands - 1) * len(columns) :, len(facets) - (bands - 1) * across :].ravel():
        axes.remove()
    draw_legend(figure, styles, "test/accuracy" in columns, beside=1 + across)
    # A single curve has no label, so the title names the runs.
    notes = [str(runs[0]["name"]), explain(runs)] if labels == [""] else [explain(runs)]
    figure.suptitle("; ".join(filter(None, notes)).replace("; ", "\n" if across == 1 else "; "), fontsize=9)
    return figure


def draw_curves(
    panels: Sequence[Axes],
    columns: Sequence[str],
    groups: Mapping[str, Sequence[Run]],
    members: Sequence[Run],
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """Draw each column into its panel, with a curve and its band for each group; only runs in ``members`` count."""
    shown = set(members)
    for label, group in groups.items():
        here = [run for run in group if run in shown]
        for axes, column in zip(panels, columns, strict=True):
            draw_band(axes, here, column, label, **styles[label])
            if column == "test/accuracy":
                thin = {**styles[label], "linestyle": ":", "linewidth": 0.9}
                draw_band(axes, here, "train/accuracy", f"{label} (train)", **thin)
    for axes, column in zip(panels, columns, strict=True):
        axes.set_ylabel(column)
        axes.grid(alpha=0.25)
        if column in LOGARITHMIC:
            logarithmic(axes)
        elif column in BOUNDED:
            axes.set_ylim(*BOUNDED[column])
        set_step_axis(axes, members)


def set_step_axis(axes: Axes, runs: Sequence[Run]) -> None:
    """Let the step axis end at the last row, logarithmic for long runs."""
    last = last_step(runs)
    if last >= LONG:
        axes.set_xscale("log")
        # A logarithmic axis cannot show row 0, so it begins at the next row.
        axes.set_xlim(min(int(run.metrics.index[1]) for run in runs), last)
    else:
        axes.set_xlim(0, max(last, 1))


def with_rows(runs: Sequence[Run], columns: Sequence[str]) -> list[Run]:
    """The runs with at least two rows; an `InputError` if there is none, or if none has one of the columns."""
    chosen = [run for run in runs if len(run.metrics) > 1]
    if not chosen:
        raise InputError("None of the runs has the rows that a curve needs; train first.")
    for column in columns:
        if not any(column in run.metrics for run in chosen):
            known = {str(name) for run in chosen for name in run.metrics}
            raise InputError(
                f"None of the runs has the column {column}; see which callback measures it.{nearest(column, known)}"
            )
    return chosen


def _facets(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each task and training fraction, under a title that names what differs."""
    fractions = any(key in FACETS for key in differing_settings(runs))
    facets = grouped(runs, lambda run: (run.task.num_tokens, task_name(run), run.train_fraction if fractions else 0.0))
    several = len({key[1:2] for key in facets}) < len(facets)
    return {
        f"{name}, n/N={fraction:.3g}" if several else name: facets[key]
        for key in sorted(facets)
        for _, name, fraction in [key]
    }


def _curve_settings(facets: Iterable[Sequence[Run]]) -> list[str]:
    """The settings that differ within some panel."""
    keys = [key for members in facets for key in differing_settings(members, ignore=FACETS)]
    return list(dict.fromkeys(keys))


def draw_legend(
    figure: Figure | SubFigure, styles: Mapping[str, Mapping[str, Any]], with_train: bool, beside: int
) -> None:
    handles = [Line2D([], [], label=label, linewidth=1.6, **style) for label, style in styles.items() if label]
    if with_train:
        handles.append(Line2D([], [], label="training accuracy", color=GREY, linestyle=":", linewidth=0.9))
    figure.legend(handles=handles, loc="outside lower center", ncols=beside, fontsize=9,
                  frameon=False, handlelength=3)  # fmt: skip


def explain(runs: Sequence[Run]) -> str:
    """The meaning of the bands, and of the curves of runs that ended early."""
    several = any(len(group) > 1 for group in groups_of_seeds(runs).values())
    notes = [BAND] if several else []
    if any(map(stopped_early, runs)):
        notes.append("a run that stopped at its test accuracy keeps its last value")
    return "; ".join(notes)


# `curves` finds in the configs what the runs differ in, so these experiments differ only in their columns.
for _name, _columns in {
    "fig10_real": LEARNING,
    "fig11_complex": LEARNING,
    "fig12_ridge": LEARNING,
    "fourier_lottery": (*LEARNING, "features/purity"),
    "symmetric_groups": LEARNING,
}.items():
    FIGURES.register(_name)(partial(curves, columns=_columns))
