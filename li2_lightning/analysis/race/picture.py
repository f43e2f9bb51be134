"""The picture of a confirmation."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from li2_lightning.analysis.figures.style import BLUE, GREY, MARKERS, PlainLogFormatter, curve_style, new_figure
from li2_lightning.analysis.race.entrants import LEVEL
from li2_lightning.analysis.race.standings import Standings
from li2_lightning.analysis.race.statistics import COVERAGE, MOST_RATIO, to_fastest


def draw_standings(standings: Standings) -> Figure:
    """Scores with their groups, ratios to the fastest on each workload, and performance profiles."""
    figure = new_figure(15, 1.8 + 0.34 * len(standings.optimizers))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.2, 1.2))
    _draw_scores(left, standings)
    _draw_ratios(middle, standings)
    _draw_profiles(right, standings)
    figure.suptitle(
        f"Steps to test accuracy {LEVEL:g} at the tuned setting, on {len(standings.seeds)} fresh seeds and "
        f"{len(standings.workloads)} workloads", fontsize=10,
    )  # fmt: skip
    return figure


def _draw_scores(axes: Axes, standings: Standings) -> None:
    low, high = standings.score_interval
    for i, score in enumerate(standings.scores):
        axes.plot([low[i], high[i]], [i, i], color=BLUE, linewidth=1.6)
        axes.plot(score, i, color=BLUE, marker="o", markersize=5)
        axes.annotate(standings.groups[i], (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    _name_rows(axes, standings)
    axes.set_yticks(range(len(standings.optimizers)), standings.optimizers, fontsize=8)
    axes.set_xlabel(f"score, with its {100 * COVERAGE:g} % interval")
    axes.set_title("Letters: a shared letter is no known difference", fontsize=9)


def _draw_ratios(axes: Axes, standings: Standings) -> None:
    ratios = to_fastest(standings.medians)
    never = 2 * ratios[np.isfinite(ratios)].max(initial=MOST_RATIO)
    for w, workload in enumerate(standings.workloads):
        at = np.where(np.isfinite(ratios[:, w]), ratios[:, w], never)
        # Shifted, so that no marker hides another.
        rows = np.arange(len(at)) + (w - (len(standings.workloads) - 1) / 2) * 0.09
        style = curve_style(w, len(standings.workloads))
        axes.plot(at, rows, linestyle="none", color=style["color"], marker=MARKERS[w % len(MARKERS)], markersize=4.5,
                  label=workload)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(PlainLogFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.annotate("never", (never, -0.65), ha="center", va="bottom", fontsize=8, color=GREY)
    _name_rows(axes, standings)
    axes.set_yticks(range(len(standings.optimizers)), [])
    axes.set_xlabel("median steps over those of the fastest on this workload")
    # Below the axes, since every place inside may have markers.
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)


def _draw_profiles(axes: Axes, standings: Standings) -> None:
    ratios = np.sort(to_fastest(standings.medians), axis=1)
    for i, optimizer in enumerate(standings.optimizers):
        at = np.concatenate([[1.0], ratios[i], [np.inf]])
        share = np.concatenate([[0.0], np.arange(1, ratios.shape[1] + 1), [ratios.shape[1]]]) / ratios.shape[1]
        axes.step(np.minimum(at, MOST_RATIO), share, where="post", label=optimizer, linewidth=1.4,
                  **curve_style(i, len(standings.optimizers)))  # fmt: skip
    axes.set_xlim(1, MOST_RATIO)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.set_xlabel("τ")
    axes.set_title("Share of workloads within τ times the fastest", fontsize=9)
    axes.legend(fontsize=7, loc="lower right", ncols=2)


def _name_rows(axes: Axes, standings: Standings) -> None:
    axes.set_ylim(len(standings.optimizers) - 0.5, -0.7)
    axes.grid(alpha=0.25, axis="x")
