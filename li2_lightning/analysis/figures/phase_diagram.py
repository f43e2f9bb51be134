"""Test accuracy over the training fraction, with the predicted boundary of generalization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.style import GREY, MARKERS, ORANGE, curve_style, new_figure
from li2_lightning.errors import InputError
from li2_lightning.groups.representations import isotypic_blocks, max_irrep_dimension
from li2_lightning.runs.load import Run, differing_settings, grouped, groups_of_seeds, task_name
from li2_lightning.theory.sampling import critical_fraction

GENERALIZED = 0.9
"""Test accuracy in the last row from which on a run counts as generalized."""

MEMORIZED = 0.9
"""Training accuracy in the last row below which a run tells nothing about the number of samples: it learned neither
the training rows nor the group, for example since its weights decayed away."""

FRACTION_KEYS = ("data.train_fraction", "data.train_size", "data.critical_ratio")
BOUNDARY = "predicted, 2.7482·ln M/M·max(1, max d_k/2)"


@dataclass(frozen=True)
class Jump:
    """Where the median test accuracy of a series jumps.

    Attributes:
        order: number of group elements, M.
        irrep: largest dimension of an irrep; None if the task is no group.
        below: largest fraction up to which every median is below .1; None if the first is not.
        above: smallest fraction from which on every median is above .9; None if the last is not.
        half: `half_crossing` of the medians.
    """

    order: int
    irrep: int | None
    below: float | None
    above: float | None
    half: float | None


@FIGURES.register("fig05_cyclic_prime")
@FIGURES.register("fig05_cyclic_composite")
@FIGURES.register("fig05_product")
@FIGURES.register("fig05_nonabelian")
def phase_diagram(runs: list[Run]) -> Figure:
    """Final test accuracy over the training fraction, a panel for each task; a last panel shows the jump over M.

    Raises:
        InputError: the runs do not differ in their training fraction.
    """
    runs = ended(runs)
    tasks = by_task(runs)
    columns = min(4, len(tasks) + 1)
    rows = -(-(len(tasks) + 1) // columns)
    figure = new_figure(3.9 * columns, 3.2 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    jumps: dict[str, list[Jump]] = {}
    for index, (axes, (name, group)) in enumerate(zip(panels, tasks.items(), strict=False)):
        for label, jump in _draw_task(axes, name, group, labelled=index == 0).items():
            jumps.setdefault(label, []).append(jump)
        axes.set_ylabel("test accuracy at the end" if index % columns == 0 else "")
    _draw_jumps(panels[len(tasks)], jumps)
    for axes in panels[len(tasks) + 1 :]:
        axes.remove()
    count = max(len(group) for group in by_fraction(runs).values())
    figure.suptitle(
        f"line: median over up to {count} seeds, band: lowest to highest seed, points: single runs", fontsize=10
    )
    return figure


@FIGURES.register("fig06_learning_rate")
def learning_rate(runs: list[Run]) -> Figure:
    """The share of seeds that generalize over learning rate and training fraction, a panel for each task.

    A diverged run did not generalize.

    Raises:
        InputError: the runs do not differ in both learning rate and training fraction.
    """
    runs = ended(runs)
    if "optimizer.lr" not in differing_settings(runs):
        raise InputError("This picture needs runs that differ in optimizer.lr.")
    tasks = by_task(runs)
    figure = new_figure(1.2 + 5 * len(tasks), 4.4)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, (name, group) in zip(panels, tasks.items(), strict=True):
        mesh = _draw_shares(axes, name, group)
    figure.colorbar(mesh, ax=panels, label="share of seeds that generalize")
    figure.suptitle(f"share of seeds with test accuracy ≥ {GENERALIZED:g} at the end\ndashed: {BOUNDARY}", fontsize=10)
    return figure


def ended(runs: Sequence[Run]) -> list[Run]:
    """The finished and diverged runs.

    Raises:
        InputError: there is none, or all have the same training fraction.
    """
    chosen = [run for run in runs if run.summary is not None and "test/accuracy" in run.metrics]
    if not chosen:
        raise InputError("None of the runs has come to its end.")
    if not set(differing_settings(chosen)) & set(FRACTION_KEYS):
        raise InputError(
            f"This picture needs runs that differ in their training fraction, {', '.join(FRACTION_KEYS[:-1])} or "
            f"{FRACTION_KEYS[-1]}."
        )
    return chosen


def by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each task under its name, sorted by the number of tokens."""
    return grouped(sorted(runs, key=lambda run: run.task.num_tokens), task_name)


def by_fraction(runs: Sequence[Run]) -> dict[tuple[str, float], list[Run]]:
    """The runs of each task and training fraction, sorted by the fraction."""
    ordered = sorted(runs, key=lambda run: run.train_fraction)
    return grouped(ordered, lambda run: (task_name(run), run.train_fraction))


def by_width(runs: Sequence[Run]) -> dict[int, list[Run]]:
    """The runs of each width, in the order of width."""
    ordered = sorted(runs, key=lambda run: int(run["network.width"]))
    return grouped(ordered, lambda run: int(run["network.width"]))


def count_irreps(run: Run) -> int:
    """The number of non-trivial irreps of a group; a conjugate pair counts as one."""
    return len(isotypic_blocks(run.group)) - 1


def final_accuracy(run: Run) -> float:
    """Test accuracy of the last row; 0 for a run that diverged."""
    return run.last("test/accuracy") if run.finished else 0.0


def find_jump(runs: Sequence[Run]) -> Jump:
    """The jump of runs of one task over the training fraction."""
    groups = by_fraction(runs)
    fractions = [fraction for _, fraction in groups]
    medians = [float(np.median([final_accuracy(run) for run in group])) for group in groups.values()]
    below = above = None
    for fraction, median in zip(fractions, medians, strict=True):
        if median >= 0.1:
            break
        below = fraction
    for fraction, median in zip(reversed(fractions), reversed(medians), strict=True):
        if median <= GENERALIZED:
            break
        above = fraction
    task, half = runs[0].task, half_crossing(fractions, medians)
    return Jump(task.num_tokens, max_irrep_dimension(task.group) if task.group else None, below, above, half)


def half_crossing(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Where y first rises through one half, interpolated; None if it does not."""
    for (before, low), (after, high) in pairwise(zip(x, y, strict=True)):
        if low < 0.5 <= high:
            return before + (0.5 - low) / (high - low) * (after - before)
    return None


def _draw_task(axes: Axes, name: str, runs: list[Run], labelled: bool) -> dict[str, Jump]:
    jumps = {}
    series = groups_of_seeds(runs, differing_settings(runs, ignore=(*FRACTION_KEYS, "task")))
    for index, (label, members) in enumerate(series.items()):
        style = curve_style(index, len(series))
        groups = by_fraction(members)
        x = [fraction for _, fraction in groups]
        values = [[final_accuracy(run) for run in group] for group in groups.values()]
        axes.plot(x, [np.median(each) for each in values], marker=MARKERS[index % len(MARKERS)], markersize=4,
                  linewidth=1.6, label=label or None, **style)  # fmt: skip
        axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.2, lw=0)
        points = [(fraction, value) for fraction, each in zip(x, values, strict=True) for value in each]
        axes.plot(*zip(*points, strict=True), ".", color=style["color"], markersize=3, alpha=0.6)
        jumps[label] = find_jump(members)
    predicted = runs[0].task.predicted_fraction
    if predicted is not None:
        axes.axvline(predicted, color=GREY, linestyle="--", linewidth=1.2, label="predicted")
    axes.set_title(f"{name}   M={runs[0].task.num_tokens}", loc="left", fontsize=10)
    axes.set_xlabel("training fraction n/N")
    axes.locator_params(axis="x", nbins=5)  # so that labels of three digits do not touch
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.25)
    if labelled:
        axes.legend(fontsize=8)
    return jumps


def _draw_jumps(axes: Axes, jumps: dict[str, list[Jump]]) -> None:
    """The jumps over M, and the predicted boundary for each largest dimension of an irrep."""
    every = [jump for series in jumps.values() for jump in series]
    orders = np.array([jump.order for jump in every], dtype=float)
    low, high = max(3.0, 0.85 * orders.min()), 1.15 * orders.max()
    grid = np.geomspace(low, max(high, low * 1.2), 100)
    scales = sorted({max(2, jump.irrep) for jump in every if jump.irrep is not None})
    for line, irrep in zip(("--", ":", "-.", (0, (6, 1))), scales, strict=False):
        text = "predicted" if len(scales) == 1 else f"predicted, max d_k={'1, 2' if irrep == 2 else irrep}"
        boundary = [critical_fraction(order, irrep) for order in grid]
        axes.plot(grid, boundary, linestyle=line, color=GREY, linewidth=1.2, label=text)
    for index, (label, series) in enumerate(jumps.items()):
        style = curve_style(index, len(jumps))
        found = [(jump.order, jump.half) for jump in series if jump.half is not None]
        axes.plot([order for order, _ in found], [half for _, half in found], linestyle="none",
                  marker=MARKERS[index % len(MARKERS)], color=style["color"],
                  label=f"{label}: median crosses .5" if label else "median crosses .5")  # fmt: skip
        for jump in series:
            if jump.below is not None and jump.above is not None and jump.below < jump.above:
                axes.plot([jump.order] * 2, [jump.below, jump.above], color=style["color"], linewidth=1.5, alpha=0.6)
    axes.set_title("Jump (bar: below .1 to above .9)", loc="left", fontsize=10)
    axes.set_xlabel("M")
    axes.set_ylabel("training fraction n/N")
    axes.set_ylim(0, min(1.0, axes.get_ylim()[1]))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _draw_shares(axes: Axes, name: str, runs: list[Run]) -> Any:
    rates = sorted({float(run["optimizer.lr"]) for run in runs})
    fractions = sorted({run.train_fraction for run in runs})
    x, y = _edges(fractions), np.exp(_edges([math.log(rate) for rate in rates]))
    share = np.full((len(rates), len(fractions)), np.nan)
    for row, rate in enumerate(rates):
        for column, fraction in enumerate(fractions):
            cell = [run for run in runs if float(run["optimizer.lr"]) == rate and run.train_fraction == fraction]
            if cell:
                hits = sum(final_accuracy(run) >= GENERALIZED for run in cell)
                share[row, column] = hits / len(cell)
                # Cells are not centred on their fractions; text at the fraction would be crossed by the boundary.
                middle = (x[column] + x[column + 1]) / 2, math.sqrt(y[row] * y[row + 1])
                axes.text(*middle, f"{hits}/{len(cell)}", ha="center", va="center", fontsize=8,
                          color="black" if hits / len(cell) > 0.6 else "white")  # fmt: skip
    mesh = axes.pcolormesh(x, y, np.ma.masked_invalid(share), cmap="cividis", vmin=0, vmax=1)
    axes.set_yscale("log")
    axes.set_yticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    predicted = runs[0].task.predicted_fraction
    if predicted is not None:
        axes.axvline(predicted, color=ORANGE, linestyle="--", linewidth=2)
    axes.set_title(f"{name}   M={runs[0].task.num_tokens}", loc="left", fontsize=10)
    axes.set_xlabel("training fraction n/N")
    axes.set_ylabel("learning rate")
    return mesh


def _edges(centres: Sequence[float]) -> npt.NDArray[np.floating]:
    """Borders of cells around sorted values, half-way between neighbours."""
    x = np.array(centres)
    steps = np.diff(x) if len(x) > 1 else np.array([0.1])
    return np.concatenate([[x[0] - steps[0] / 2], x[:-1] + np.diff(x) / 2, [x[-1] + steps[-1] / 2]])
