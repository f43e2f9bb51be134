"""Pictures of optimizers: the race, and Adam against Muon over the width (Fig. 8, Theorem 8)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.style import (
    BAND,
    BLUE,
    GREY,
    LINES,
    MARKERS,
    curve_style,
    draw_band,
    new_figure,
)
from li2_lightning.analysis.race import LEVEL, Entrant, describe_setting, entrants, node_statistics
from li2_lightning.config.identity import role_value
from li2_lightning.errors import InputError
from li2_lightning.groups.representations import block_slices
from li2_lightning.runs.load import Run, task_name
from li2_lightning.theory.muon import expected_coverage

COLUMNS = {"test/loss": "test loss", "test/accuracy": "test accuracy"}
# κ of Theorem 8: 1 is independent nodes, ½ the case of equal norms, 0 one node for each irrep.
SHRINKS = {1.0: "predicted, independent (κ = 1)", 0.5: "predicted, Muon (κ = ½)", 0.0: "one node each (κ = 0)"}


def best_by_width(runs: Sequence[Run]) -> dict[str, dict[int, list[Run]]]:
    """Optimizer of W → width → the runs at the learning rate with the lowest median final test loss.

    The learning rate is chosen for each optimizer and width separately, and the smaller of two equals. A diverged run
    has an infinite loss.

    Raises:
        InputError: no run has ended.
    """
    by: dict[str, dict[int, dict[float, list[Run]]]] = {}
    for run in runs:
        if run.summary is not None:
            rates = by.setdefault(run["optimizer.hidden.name"], {}).setdefault(run["network.width"], {})
            rates.setdefault(float(role_value(run["optimizer"], "hidden", "lr")), []).append(run)
    if not by:
        raise InputError("None of the runs has ended, so there is nothing to draw.")
    return {
        name: {
            width: min(sorted(rates.items()), key=lambda item: statistics.median(map(_final_loss, item[1])))[1]
            for width, rates in sorted(widths.items())
        }
        for name, widths in sorted(by.items())
    }


@FIGURES.register("fig08_muon")
def draw_muon(runs: list[Run]) -> Figure:
    """Test loss, test accuracy and coverage over K, with each optimizer at its best learning rate for each K."""
    best = best_by_width(runs)
    figure = new_figure(15, 4.6)
    panels = figure.subplots(1, 3)
    for index, (name, widths) in enumerate(best.items()):
        style = {**curve_style(index, len(best)), "marker": MARKERS[index % len(MARKERS)]}
        # Shifted sideways, so that no error bar hides another.
        shift = 1.03 ** (index - (len(best) - 1) / 2)
        for axes, measure in zip(panels, (*map(final, COLUMNS), coverage), strict=True):
            _draw_over_width(axes, widths, measure, shift, label=f"{name} on W", **style)
    _draw_prediction(panels[2], runs[0], sorted({width for widths in best.values() for width in widths}))
    for axes, label in zip(panels, (*COLUMNS.values(), "irreps with a node of more than half"), strict=True):
        axes.set_xlabel("K (hidden nodes)")
        axes.set_ylabel(label)
        axes.set_xscale("log", base=2)
        ticks = sorted({width for widths in best.values() for width in widths})
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    panels[2].legend(fontsize=8, loc="lower right")
    seeds = len({run.seeds for run in runs})
    figure.suptitle(
        f"{task_name(runs[0])}, row {runs[0]['max_steps']}, each at its best learning rate for that K   "
        f"(line: median over {seeds} seeds, bar: lowest to highest seed)", fontsize=10,
    )  # fmt: skip
    return figure


def final(column: str) -> Callable[[Run], float]:
    """A function that returns the last value of the column in a run."""
    return lambda run: float(run.metrics[column].iloc[-1])


def coverage(run: Run) -> float:
    """Number of irreps in which some node of the last checkpoint has more than half of its norm."""
    found = node_statistics(run)
    return found["irreps a node"] * run["network.width"] if found else math.nan


def _draw_over_width(
    axes: Axes, widths: dict[int, list[Run]], measure: Callable[[Run], float], shift: float, **style: Any
) -> None:
    values = {width: [measure(run) for run in runs] for width, runs in widths.items()}
    middle = np.array([statistics.median(v) for v in values.values()])
    reach = np.array([[m - min(v), max(v) - m] for m, v in zip(middle, values.values(), strict=True)]).T
    at = shift * np.array(list(values))
    axes.errorbar(at, middle, yerr=reach, capsize=2.5, linewidth=1.6, markersize=5, **style)


def _draw_prediction(axes: Axes, run: Run, widths: Sequence[int]) -> None:
    """The coverage that Theorem 8 predicts over K; drawn only if all blocks have one dimension."""
    nodes = range(widths[0], widths[-1] + 1)
    blocks = [] if run.task.group is None else list(block_slices(run.task.group))
    if len({block.stop - block.start for block in blocks}) != 1:
        return
    for (shrink, label), line in zip(SHRINKS.items(), LINES[1:], strict=False):
        expected = expected_coverage(len(blocks), widths[-1], shrink)[widths[0] :]
        axes.plot(nodes, expected, color=GREY, linewidth=1, linestyle=line, label=label)


def _final_loss(run: Run) -> float:
    return float(run.metrics["test/loss"].iloc[-1]) if run.finished else math.inf


@FIGURES.register("optimizer_race")
def draw_race(runs: list[Run]) -> Figure:
    """Left: steps to test accuracy .99 of every setting and seed. Right: test accuracy at the best setting of each."""
    ranked = entrants(runs)
    figure = new_figure(13, 1.6 + 0.55 * len(ranked))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_steps(left, ranked)
    for index, entrant in enumerate(ranked):
        style = curve_style(index, len(ranked))
        draw_band(right, entrant.best.runs, "test/accuracy", entrant.label, **style)
    right.set_xlabel("step (optimizer updates)")
    right.set_ylabel("test accuracy")
    right.set_ylim(-0.02, 1.02)
    right.axhline(LEVEL, color=GREY, linewidth=0.8, linestyle=(0, (4, 4)))
    right.grid(alpha=0.25)
    # Curves fill the panel, so the legend is below the axis.
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False, handlelength=3)
    right.set_title(f"Each at its best setting\n{BAND}", fontsize=9)
    seeds = len({run.seeds for run in runs})
    figure.suptitle(f"{task_name(runs[0])}, K={runs[0]['network.width']}, {seeds} seeds", fontsize=11)
    return figure


def _draw_steps(axes: Axes, ranked: Sequence[Entrant]) -> None:
    finite = [step for e in ranked for s in e.settings for step in s.steps if math.isfinite(step)]
    last = max((int(run["max_steps"]) for e in ranked for run in e.runs), default=1)
    never = last * 1.35
    for row, entrant in enumerate(ranked):
        steps = [min(step, never) for setting in entrant.settings for step in setting.steps]
        axes.plot(steps, [row + 0.16] * len(steps), "|", color=GREY, markersize=7, alpha=0.6)
        best = [min(step, never) for step in entrant.best.steps]
        axes.plot(best, [row - 0.12] * len(best), marker=MARKERS[0], linestyle=LINES[0], color=BLUE, markersize=6)
        axes.annotate(describe_setting(entrant.best.values, entrant.edges()), (best[0], row - 0.12), xytext=(0, 6),
                      textcoords="offset points", fontsize=7, ha="left", va="bottom")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(finite, default=last) / 1.3, never * 1.1)
    axes.axvline(last, color=GREY, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.annotate("never", (never, len(ranked) - 0.55), ha="center", va="bottom", fontsize=8, color=GREY)
    axes.set_yticks(range(len(ranked)), [f"{e.label}\n{e.best.reached} of {len(e.best.runs)} seeds" for e in ranked],
                    fontsize=8)  # fmt: skip
    axes.set_ylim(len(ranked) - 0.5, -0.7)
    axes.set_xlabel(f"step of test accuracy {LEVEL:g}")
    axes.grid(alpha=0.25, axis="x", which="both")
    axes.set_title("Dots: seeds of the best setting (↑ ↓: at the edge of its grid)\ngrey: every setting and seed",
                   fontsize=9)  # fmt: skip
