"""Few nodes: Adam against Muon over the width, and how many irreps they find (Fig. 8, Theorem 8)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.style import COLORS, GREY, LINES, MARKERS, new_figure
from li2_lightning.analysis.race import node_statistics
from li2_lightning.config.identity import role_value
from li2_lightning.errors import InputError
from li2_lightning.groups.representations import block_slices
from li2_lightning.runs.load import Run, task_name
from li2_lightning.theory.muon import expected_coverage

COLUMNS = {"test/loss": "test loss", "test/accuracy": "test accuracy"}
# κ of Theorem 8: 1 is nodes on their own, ½ its case of equal norms, 0 a node for each irrep.
SHRINKS = {1.0: "predicted, independent (κ = 1)", 0.5: "predicted, Muon (κ = ½)", 0.0: "one node each (κ = 0)"}


def best_by_width(runs: Sequence[Run]) -> dict[str, dict[int, list[Run]]]:
    """Optimizer of W → width → the runs with the learning rate whose median final test loss is lowest.

    Learning rates are tuned for each optimizer and width by themselves; of equals the smaller one. A diverged run
    counts as an infinite loss.

    Raises:
        InputError: no run has ended.
    """
    by: dict[str, dict[int, dict[float, list[Run]]]] = {}
    for run in runs:
        if run.summary is not None:
            lr = float(role_value(run["optimizer"], "hidden", "lr"))
            by.setdefault(run["optimizer.hidden.name"], {}).setdefault(run["network.width"], {}).setdefault(
                lr, []
            ).append(run)
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
    """Test loss, test accuracy and coverage over K, each optimizer at its best learning rate for that K."""
    best = best_by_width(runs)
    figure = new_figure(15, 4.6)
    panels = figure.subplots(1, 3)
    for index, (name, widths) in enumerate(best.items()):
        style = {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)],
                 "marker": MARKERS[index % len(MARKERS)]}  # fmt: skip
        # Side by side, so that neither hides the other.
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
    seeds = len({run["seed"] for run in runs})
    figure.suptitle(
        f"{task_name(runs[0])}, row {runs[0]['max_steps']}, each at its best learning rate for that K   "
        f"(line: median over {seeds} seeds, bar: lowest to highest seed)", fontsize=10,
    )  # fmt: skip
    return figure


def final(column: str) -> Callable[[Run], float]:
    """The last value of a column, as a function of the run."""
    return lambda run: float(run.metrics[column].iloc[-1])


def coverage(run: Run) -> float:
    """Irreps in which some node of the last checkpoint has more than half of its norm."""
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
    """What Theorem 8 expects over the range of widths, where all irreps are alike."""
    nodes = range(widths[0], widths[-1] + 1)
    blocks = [] if run.task.group is None else list(block_slices(run.task.group))
    if len({block.stop - block.start for block in blocks}) != 1:
        return
    for (shrink, label), line in zip(SHRINKS.items(), LINES[1:], strict=False):
        expected = expected_coverage(len(blocks), widths[-1], shrink)[widths[0] :]
        axes.plot(nodes, expected, color=GREY, linewidth=1, linestyle=line, label=label)


def _final_loss(run: Run) -> float:
    return float(run.metrics["test/loss"].iloc[-1]) if run.finished else math.inf
