"""Scaling laws of samples, of time, of the limit of G_F and of width, fitted to the runs of a sweep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.phase_diagram import (
    GENERALIZED,
    MEMORIZED,
    by_task,
    by_width,
    count_irreps,
    ended,
    final_accuracy,
)
from li2_lightning.analysis.figures.style import (
    GREY,
    MARKERS,
    ORANGE,
    PlainLogFormatter,
    bar_lengths,
    curve_style,
    draw_band,
    new_figure,
)
from li2_lightning.analysis.scaling import Estimate, exponent, half_points, law
from li2_lightning.errors import InputError
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.runs.load import Run, differing_settings, grouped, task_name
from li2_lightning.theory.muon import expected_coverage

LAWS: dict[str, Callable[[float, float], float]] = {
    "n/M": lambda p, M: p * M,
    "n/(M ln M)": lambda p, M: p * M / math.log(M),
    "p/(1−p) · M/ln M": lambda p, M: p / (1 - p) * M / math.log(M),
}
"""Quantities that may be constant along the boundary, of the share of pairs p = n/M² and the order M."""


@FIGURES.register("scaling_samples")
def samples(runs: list[Run]) -> Figure:
    """The boundary of generalization over the order of the group, and how well each law describes it.

    Runs with wrong labels are the control: they are drawn, and left out of every fit. Runs that did not memorize are
    left out of the figure, and the title has their number.

    Raises:
        InputError: the runs do not differ in their training fraction, or have fewer than two orders.
    """
    runs = ended(runs)
    control = [run for run in runs if _noise(run)]
    clean = _memorizing([run for run in runs if not _noise(run)])
    halves, orders = _boundaries(clean)
    if len(orders) < 2:
        raise InputError("This picture needs runs of groups of at least two orders.")
    figure = new_figure(15, 4.4)
    left, middle, right = figure.subplots(1, 3)
    for index, (name, members) in enumerate(by_task(clean).items()):
        style = curve_style(index, len(halves))
        x = [run.train_fraction / halves[name].value for run in members]
        left.plot(x, [final_accuracy(run) for run in members], MARKERS[index % len(MARKERS)], color=style["color"],
                  markersize=4, alpha=0.6, label=f"{name}: p½ = {halves[name]}")  # fmt: skip
        middle.errorbar(orders[name], halves[name].value, _error(halves[name]), color=style["color"], capsize=3,
                        marker=MARKERS[index % len(MARKERS)])  # fmt: skip
    shown = [run for run in control if task_name(run) in halves]
    left.plot([run.train_fraction / halves[task_name(run)].value for run in shown],
              [final_accuracy(run) for run in shown], "x", color=ORANGE,
              label="wrong labels only" if shown else None)  # fmt: skip
    memorized = [run.last("train/accuracy") for run in clean if final_accuracy(run) < GENERALIZED]
    left.set_title(f"{len(memorized)} runs below {GENERALIZED:g}: training accuracy ≥ {min(memorized, default=1):.3g}",
                   loc="left", fontsize=9)  # fmt: skip
    M = np.geomspace(0.9 * min(orders.values()), 1.1 * max(orders.values()), 100)
    sizes = [float(run.task.num_tokens) for run in clean]
    for index, (name, measure) in enumerate(LAWS.items()):
        u = [measure(run.train_fraction, size) for run, size in zip(clean, sizes, strict=True)]
        found = law(u, sizes, [_generalizes(run) for run in clean], _seeds(clean))
        style = curve_style(index, len(LAWS))
        label = f"{name} = {found.constant}\n  drifts as M^ {found.drift}"
        middle.plot(M, [_solve(measure, found.constant.value, order) for order in M], label=label, **style)
        for task, half in halves.items():
            order = orders[task]
            value, low, high = (measure(each, order) / found.constant.value for each in _bounds(half))
            right.errorbar(order * (1 + 0.02 * index), value, bar_lengths(value, low, high)[:, None], capsize=2,
                           color=style["color"], marker=MARKERS[index], label=name if order == max(orders.values())
                           else None)  # fmt: skip
    right.axhline(1, color=GREY, linewidth=1)
    _finish(left, "share of pairs over that of the boundary, p/p½", "test accuracy at the end")
    _finish(middle, "M", "share of pairs at the boundary, p½", log="xy")
    _finish(right, "M", "at the boundary, over the fitted constant", log="x")
    figure.suptitle(_explain_halves(clean, len(runs) - len(control) - len(clean)), fontsize=9)
    return figure


@FIGURES.register("scaling_irreps")
def irreps(runs: list[Run]) -> Figure:
    """The boundary of generalization of groups, over the largest dimension of a complex and of a real irrep.

    Runs that did not memorize are left out, and the title has their number.

    Raises:
        InputError: the runs do not differ in their training fraction.
    """
    found = ended(runs)
    runs = _memorizing(found)
    halves, orders = _boundaries(runs)
    figure = new_figure(11, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    dimensions = {name: _dimensions(members[0]) for name, members in by_task(runs).items()}
    for index, (name, half) in enumerate(halves.items()):
        value, low, high = (each * orders[name] / (2.7482 * math.log(orders[name])) for each in _bounds(half))
        for axes, dimension in zip(panels, dimensions[name], strict=True):
            twins = [other for other in halves if dimensions[other] == dimensions[name]]
            place = dimension * (1 + 0.03 * (twins.index(name) - (len(twins) - 1) / 2))
            axes.errorbar(place, value, bar_lengths(value, low, high)[:, None], marker=MARKERS[index % len(MARKERS)],
                          capsize=3, label=f"{name}: p½ = {half}", **_color(index, len(halves)))  # fmt: skip
    for axes, text, place in zip(panels, ("largest complex dimension, max d_k", "largest real dimension, max d_R"),
                                 (0, 1), strict=True):  # fmt: skip
        grid = np.linspace(1, max(pair[place] for pair in dimensions.values()), 50)
        if place == 0:
            axes.plot(grid, np.maximum(1, grid / 2), color=GREY, linestyle="--", label="predicted, max(1, max d_k/2)")
        _finish(axes, text, "p½ over 2.7482·ln M/M")
    panels[1].get_legend().remove()
    figure.suptitle(_explain_halves(runs, len(found) - len(runs)), fontsize=9)
    return figure


EVENTS: dict[str, Callable[[Run], float | None]] = {
    "training accuracy .99": lambda run: run.first_step("train/accuracy", 0.99),
    "stage II": lambda run: run.entered.get(2),
    "peak of ‖G_F‖": lambda run: int(run.metrics["gradient/norm"].to_numpy().argmax()),
    "stage III": lambda run: run.entered.get(3),
    "test accuracy .9": lambda run: run.first_step("test/accuracy", GENERALIZED),
}
FACTORS: dict[str, tuple[str, Callable[[Run], float]]] = {
    "optimizer.weight_decay": ("weight decay λ", lambda run: float(run["optimizer.weight_decay"])),
    "optimizer.lr": ("learning rate", lambda run: float(run["optimizer.lr"])),
    "network.width": ("width K", lambda run: float(run["network.width"])),
    "data.critical_ratio": ("training pairs n, M fixed", lambda run: float(len(run.split.train))),
    "task.order": ("order M, n ∝ M ln M", lambda run: float(run.task.num_tokens)),
}
DECAY, WIDTH = "optimizer.weight_decay", "network.width"
COVERAGE, NORM = "features/coverage", "gradient/norm"


@FIGURES.register("scaling_time")
def time(runs: list[Run]) -> Figure:
    """Steps to each event over each factor, with exponents; and ‖G_F‖ over weight decay.

    A panel has the runs that differ from the centre of the grid in its factor alone; the panel of weight decay also has
    runs of other widths. A fit uses the values of a factor at which every seed has come to the event.

    Raises:
        InputError: no finished run has the column gradient/norm.
    """
    runs = _with_gradient(runs)
    centre = _centre(runs)
    figure = new_figure(15, 9)
    panels = figure.subplots(2, 3).ravel()
    for axes, (key, (text, value)) in zip(panels, FACTORS.items(), strict=False):
        members = _around(runs, centre, key)
        for index, (event, step) in enumerate(EVENTS.items()):
            _draw_power(axes, members, value, step, event, index)
        _finish(axes, text, "step", log="xy")
    decays = FACTORS[DECAY][1]
    others = [run for run in _around(runs, centre, DECAY, WIDTH) if run.settings[WIDTH] != centre.get(WIDTH)]
    for index, (K, members) in enumerate(by_width(others).items()):
        if len({decays(run) for run in members}) > 1:
            event = "test accuracy .9"
            _draw_power(panels[0], members, decays, EVENTS[event], f"{event}, K={K:g}", len(EVENTS) + index)
    panels[0].margins(y=0.35)  # room for the legend
    panels[0].legend(fontsize=7)
    members = _around(runs, centre, DECAY)
    _draw_power(panels[5], members, decays, _largest, "largest", 0)
    _draw_power(panels[5], members, decays, lambda run: run.metrics[NORM].get(10), "at step 10", 1)
    _finish(panels[5], FACTORS[DECAY][0], "‖G_F‖", log="xy")
    figure.suptitle(f"{_explain_powers(runs)}; triangles: only some seeds", fontsize=9)
    return figure


@FIGURES.register("scaling_limit")
def limit(runs: list[Run]) -> Figure:
    """‖G_F‖ over the step at the largest width; its last value over weight decay for each width, with exponents.

    Raises:
        InputError: no finished run has the column gradient/norm.
    """
    runs = _with_gradient(runs)
    decay = FACTORS[DECAY][1]
    of_widths = by_width(runs)
    widest, members = list(of_widths.items())[-1]
    decays = grouped(sorted(members, key=decay), decay)
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    for index, (value, group) in enumerate(decays.items()):
        draw_band(left, group, NORM, f"λ = {value:g}", **curve_style(index, len(decays)))
    left.set_title(f"K = {widest}", loc="left", fontsize=9)
    for index, (K, group) in enumerate(of_widths.items()):
        label = f"K = {K}, n = {len(group[0].split.train)}, at the end"
        _draw_power(right, group, decay, lambda run: run.last(NORM), label, index)
    _draw_power(right, members, decay, _largest, f"K = {widest}, largest", len(of_widths))
    _finish(left, "step", "‖G_F‖", log="xy")
    _finish(right, FACTORS[DECAY][0], "‖G_F‖", log="xy")
    figure.suptitle(_explain_powers(runs), fontsize=9)
    return figure


@FIGURES.register("scaling_width")
def width(runs: list[Run]) -> Figure:
    """Irreps that some node ends in, over the number of nodes; the width that covers all, over the number of irreps.

    Runs with wrong labels are the control: they are drawn, and left out of every fit.

    Raises:
        InputError: no finished run of a group with the column features/coverage.
    """
    runs = [run for run in runs if run.finished and run.task.group is not None and COVERAGE in run.metrics]
    clean, control = [run for run in runs if not _noise(run)], [run for run in runs if _noise(run)]
    if not clean:
        raise InputError("This picture needs finished runs of a group with the column features/coverage.")
    tasks = by_task(clean)
    irreps = {name: count_irreps(members[0]) for name, members in tasks.items()}
    names = [task_name(run) for run in clean]
    widths = [float(run["network.width"]) for run in clean]
    complete = [run.last(COVERAGE) == irreps[name] for run, name in zip(clean, names, strict=True)]
    halves = half_points(widths, complete, names, _seeds(clean))
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    for index, (name, members) in enumerate(tasks.items()):
        style, L = curve_style(index, len(tasks)), irreps[name]
        of_widths = by_width(members)
        means = [np.mean([run.last(COVERAGE) for run in group]) / L for group in of_widths.values()]
        left.plot([K / L for K in of_widths], means, MARKERS[index % len(MARKERS)], color=style["color"],
                  label=f"{name}, {L} irreps")  # fmt: skip
        grid = np.geomspace(min(of_widths), max(of_widths), 60)
        expected = expected_coverage(L, max(of_widths)).numpy()
        left.plot(grid / L, np.interp(grid, np.arange(len(expected)), expected) / L, linewidth=1, **style)
        right.errorbar(L, halves[name].value, _error(halves[name]), color=style["color"], capsize=3,
                       marker=MARKERS[index % len(MARKERS)], label=f"{name}: K½ = {halves[name]}")  # fmt: skip
    shown = [run for run in control if task_name(run) in irreps]
    left.plot([run["network.width"] / irreps[task_name(run)] for run in shown],
              [run.last(COVERAGE) / irreps[task_name(run)] for run in shown], "x", color=ORANGE,
              label="wrong labels only" if shown else None)  # fmt: skip
    independent = {L: _independent_width(L) for L in sorted(set(irreps.values()))}
    if len(independent) > 1:
        sizes = [irreps[name] for name in names]
        power = law(widths, sizes, complete, _seeds(clean)).drift
        ratios = [K / independent[L] for K, L in zip(widths, sizes, strict=True)]
        ratio = law(ratios, sizes, complete, _seeds(clean))
        label = f"K½ ∝ L^ {power}\nK½ over that of independent nodes = {ratio.constant}\n  drifts as L^ {ratio.drift}"
        right.plot([], [], " ", label=label)
    right.plot(*zip(*independent.items(), strict=True), color=GREY, label="independent nodes, Theorem 8")
    right.plot([*independent], [*independent], color=GREY, linestyle=":", label="K = L")
    _finish(left, "nodes for each irrep, K/L", "share of irreps that some node ends in", log="x")
    left.plot([], [], color=GREY, linewidth=1, label="line: independent nodes")
    right.set_ylim(top=3 * max(half.high for half in halves.values()))  # room for the legend
    _finish(
        right,
        "number of irreps, L",
        "width with which half of the seeds cover all irreps, K½",
        log="xy",
        legend="upper left",
    )
    figure.suptitle(_explain_halves(clean), fontsize=9)
    return figure


def _boundaries(runs: Sequence[Run]) -> tuple[dict[str, Estimate], dict[str, int]]:
    """p½ of each task by its name, and the number of its elements."""
    p = [run.train_fraction for run in runs]
    halves = half_points(p, [_generalizes(run) for run in runs], [task_name(run) for run in runs], _seeds(runs))
    return halves, {task_name(run): run.task.num_tokens for run in runs}


def _memorizing(runs: Sequence[Run]) -> list[Run]:
    """The runs that tell something about the number of samples.

    Raises:
        InputError: no run has memorized its training rows.
    """
    kept = [run for run in runs if run.last("train/accuracy") >= MEMORIZED]
    if not kept:
        raise InputError(
            f"This picture needs runs with training accuracy ≥ {MEMORIZED:g} at the end, which none has; a smaller "
            "optimizer.weight_decay or more steps let a run memorize."
        )
    return kept


def _generalizes(run: Run) -> bool:
    return final_accuracy(run) >= GENERALIZED


def _seeds(runs: Sequence[Run]) -> list[int]:
    return [int(run["seed"]) for run in runs]


def _noise(run: Run) -> float:
    return float(run["data.label_noise"])


def _dimensions(run: Run) -> tuple[int, int]:
    """The largest dimension of a complex irrep and of a real one."""
    blocks = isotypic_blocks(run.group)
    return max(block.dimension for block in blocks), max(block.real_dimension for block in blocks)


def _independent_width(maxima: int) -> int:
    """The number of independent nodes that hold all of ``maxima`` equally likely maxima with probability one half."""
    found = np.arange(maxima + 1)
    chance, nodes = np.eye(maxima + 1)[0], 0
    while chance[-1] < 0.5:
        new = chance * (1 - found / maxima)
        chance, nodes = chance - new + np.roll(new, 1), nodes + 1
    return nodes


def _solve(measure: Callable[[float, float], float], target: float, order: float) -> float:
    """The share of pairs p with measure(p, M) = target, by bisection."""
    low, high = 1e-9, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle, order) < target else (low, middle)
    return low


def _with_gradient(runs: Sequence[Run]) -> list[Run]:
    """The finished runs with the column gradient/norm; an `InputError` if there is none."""
    found = [run for run in runs if run.finished and NORM in run.metrics]
    if not found:
        raise InputError("This picture needs finished runs with callbacks.gradient.enabled=true.")
    return found


def _largest(run: Run) -> float:
    return float(run.metrics[NORM].max())


def _centre(runs: Sequence[Run]) -> dict[str, Any]:
    """The most frequent value of each factor that differs."""
    keys = [key for key in differing_settings(runs) if key in FACTORS]
    return {key: Counter(run.settings[key] for run in runs).most_common(1)[0][0] for key in keys}


def _around(runs: Sequence[Run], centre: Mapping[str, Any], *free: str) -> list[Run]:
    """The runs at the centre in every factor but ``free``."""
    return [run for run in runs if all(run.settings[key] == value for key, value in centre.items() if key not in free)]


def _draw_power(
    axes: Axes,
    runs: Sequence[Run],
    value: Callable[[Run], float],
    outcome: Callable[[Run], float | None],
    label: str,
    index: int,
) -> None:
    """Medians of an outcome over a positive factor, with the exponent of a power law in the legend."""
    fitted: list[tuple[Run, float]] = []
    color = curve_style(index, max(6, index + 1))["color"]
    for x, members in grouped(sorted(runs, key=value), value).items():
        reached = [(run, float(y)) for run in members if (y := outcome(run)) is not None and y > 0]
        if x <= 0 or not reached:
            continue
        ys = [y for _, y in reached]
        whole = len(reached) == len(members)
        axes.errorbar(x, np.median(ys), [[np.median(ys) - min(ys)], [max(ys) - np.median(ys)]], color=color, capsize=2,
                      marker="o" if whole else "^", markersize=4)  # fmt: skip
        if whole:
            fitted += reached
    values = [value(run) for run, _ in fitted]
    if len(set(values)) > 1:
        found = exponent(values, [y for _, y in fitted], [task_name(run) for run, _ in fitted],
                         _seeds([run for run, _ in fitted]))  # fmt: skip
        label += f"  [{found}]"
    axes.plot([], [], color=color, marker="o", markersize=4, label=label)


def _bounds(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _error(estimate: Estimate) -> npt.NDArray[np.float64]:
    return bar_lengths(*_bounds(estimate))[:, None]


def _color(index: int, count: int) -> dict[str, Any]:
    return {"color": curve_style(index, count)["color"], "linestyle": "none"}


def _explain(runs: Sequence[Run], intervals: str = "intervals and error bars") -> str:
    seeds = _seeds(runs)
    return f"seeds {min(seeds)} to {max(seeds)}; {intervals}: 95 % of bootstrap draws of seeds"


def _explain_halves(runs: Sequence[Run], left_out: int = 0) -> str:
    said = f"{_explain(runs)}, or the two values around a jump"
    return f"{said}; {left_out} runs that did not memorize are left out" if left_out else said


def _explain_powers(runs: Sequence[Run]) -> str:
    return f"{_explain(runs, 'in brackets the exponent and its interval')}; bars: lowest to highest seed"


def _finish(axes: Axes, x: str, y: str, log: str = "", legend: Literal["best", "upper left"] = "best") -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis, letter in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        if letter in log:
            axes.set(**{f"{letter}scale": "log"})
            axis.set_major_formatter(PlainLogFormatter())
            axis.set_minor_formatter(PlainLogFormatter(minor_thresholds=(2, 0.7)))
            axis.set_tick_params(which="major", labelsize=8)
            axis.set_tick_params(which="minor", labelsize=6)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=7, loc=legend)
