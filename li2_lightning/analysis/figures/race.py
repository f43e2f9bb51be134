"""The race of the optimizers: every setting as a dot, and how each optimizer's best one learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.style import BAND, BLUE, GREY, LINES, MARKERS, curve_style, draw_band, new_figure
from li2_lightning.analysis.race import LEVEL, Entrant, describe_setting, entrants
from li2_lightning.runs.load import Run, task_name


@FIGURES.register("optimizer_race")
def draw_race(runs: list[Run]) -> Figure:
    """Left: steps to test accuracy .99 of every setting and seed, the best setting marked. Right: its accuracy."""
    field = entrants(runs)
    figure = new_figure(13, 1.6 + 0.55 * len(field))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_steps(left, field)
    for index, entrant in enumerate(field):
        style = curve_style(index, len(field))
        draw_band(right, entrant.best.runs, "test/accuracy", entrant.label, **style)
    right.set_xlabel("step (optimizer updates)")
    right.set_ylabel("test accuracy")
    right.set_ylim(-0.02, 1.02)
    right.axhline(LEVEL, color=GREY, linewidth=0.8, linestyle=(0, (4, 4)))
    right.grid(alpha=0.25)
    # Below the axis: curves are everywhere above it.
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False, handlelength=3)
    right.set_title(f"Each at its best setting\n{BAND}", fontsize=9)
    seeds = len({run["seed"] for run in runs})
    figure.suptitle(f"{task_name(runs[0])}, K={runs[0]['network.width']}, {seeds} seeds", fontsize=11)
    return figure


def _draw_steps(axes: Axes, field: Sequence[Entrant]) -> None:
    finite = [step for e in field for s in e.settings for step in s.steps if math.isfinite(step)]
    last = max((int(run["max_steps"]) for e in field for run in e.runs), default=1)
    never = last * 1.35
    for row, entrant in enumerate(field):
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
    axes.annotate("never", (never, len(field) - 0.55), ha="center", va="bottom", fontsize=8, color=GREY)
    axes.set_yticks(range(len(field)), [f"{e.label}\n{e.best.reached} of {len(e.best.runs)} seeds" for e in field],
                    fontsize=8)  # fmt: skip
    axes.set_ylim(len(field) - 0.5, -0.7)
    axes.set_xlabel(f"step of test accuracy {LEVEL:g}")
    axes.grid(alpha=0.25, axis="x", which="both")
    axes.set_title("Dots: seeds of the best setting (↑ ↓: at the edge of its grid)\ngrey: every setting and seed",
                   fontsize=9)  # fmt: skip
