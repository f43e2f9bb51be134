"""Pictures of optimizers: the race, and Adam against Muon over the width (Fig. 8, Theorem 8)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
    draw_intervals,
    mean_interval,
    new_figure,
)
from li2_lightning.analysis.race import LEVEL, Entrant, describe_setting, entrants
from li2_lightning.config.identity import role_value
from li2_lightning.errors import InputError
from li2_lightning.groups.representations import block_slices
from li2_lightning.runs.load import Run, grouped, task_name
from li2_lightning.theory.muon import expected_coverage, fitted_factor

COLUMNS = {
    "test/loss": "test loss",
    "test/accuracy": "test accuracy",
    "features/coverage": "irreps with a node of more than half",
}
# κᵃ of Theorem 8 for every optimizer: 1 is independent nodes, ½ the case of equal norms, 0 one node for each irrep.
FACTORS = {1.0: "Theorem 8, κᵃ = 1 (independent)", 0.5: "κᵃ = ½", 0.0: "κᵃ = 0 (one node each)"}
# What may be tuned, and what may be the horizontal axis.
RATE, DECAY, WIDTH = "optimizer.hidden.lr", "optimizer.hidden.weight_decay", "network.width"
Tuned = dict[str, dict[float, list[Run]]]


def tuned(runs: Sequence[Run], axis: str, *choices: str) -> Tuned:
    """Optimizer of W → value of ``axis`` → a run for each seed, at a setting that other seeds chose.

    The seeds are dealt into two halves. A run of one half is at the values of ``choices`` that have the lowest median
    final test loss in the other half, among equals the smallest values. A diverged run has an infinite loss.

    Args:
        axis, choices: `RATE`, `DECAY` or `WIDTH`.

    Raises:
        InputError: the runs that have ended have fewer than two seeds.
    """
    ended = [run for run in runs if run.summary is not None]
    seeds = sorted({int(run["seed"]) for run in ended})
    if len(seeds) < 2:
        raise InputError(
            "A setting is tuned on other seeds than those it is shown on, so this picture needs two seeds."
        )
    halves = set(seeds[::2]), set(seeds[1::2])
    return {
        name: {
            value: [
                run
                for mine, others in (halves, halves[::-1])
                for run in _best_setting(cell, choices, others)
                if int(run["seed"]) in mine
            ]
            for value, cell in sorted(grouped(own, lambda run: _value(run, axis)).items())
        }
        for name, own in sorted(grouped(ended, optimizer_of_w).items())
    }


def _best_setting(runs: Sequence[Run], choices: Sequence[str], seeds: set[int]) -> list[Run]:
    """All runs at the values of ``choices`` with the lowest median final test loss of these seeds."""
    settings = grouped(runs, lambda run: tuple(_value(run, key) for key in choices))
    losses = {
        setting: [_final_loss(run) for run in group if int(run["seed"]) in seeds] for setting, group in settings.items()
    }
    return settings[min(sorted(settings), key=lambda setting: statistics.median(losses[setting] or [math.inf]))]


def optimizer_of_w(run: Run) -> str:
    """As "adam", or "muon, decoupled decay, momentum 0.99"; decay and momentum where the config says them."""
    section = run["optimizer.hidden"]
    parts = [str(section["name"])]
    if section.get("decoupled") is not None:
        parts.append(f"{'de' * section['decoupled']}coupled decay")
    if section.get("momentum") is not None:
        parts.append(f"momentum {section['momentum']:g}")
    return ", ".join(parts)


def _value(run: Run, key: str) -> float:
    section, _, name = key.rpartition(".")
    return float(role_value(run["optimizer"], "hidden", name) if section == "optimizer.hidden" else run[key])


@FIGURES.register("fig08_muon")
def draw_muon(runs: list[Run]) -> Figure:
    """Test loss, test accuracy and coverage: above over K, below over λ at one K; settings are tuned on other seeds."""
    over_width, width = tuned(runs, WIDTH, RATE, DECAY), middle_width(runs)
    over_decay = tuned([run for run in runs if run[WIDTH] == width], DECAY, RATE)
    figure = new_figure(15, 9)
    above, below = figure.subplots(2, 3)
    for index, name in enumerate(over_width):
        fit = measured_factor(over_width[name])
        label = name if fit is None else f"{name}: κᵃ = {fit[0]:.2f} ({fit[1]:.2f}–{fit[2]:.2f})"
        style = {**curve_style(index, len(over_width)), "marker": MARKERS[index % len(MARKERS)], "label": label}
        # Shifted sideways, so that no bar hides another.
        shift = 1.02 ** (index - (len(over_width) - 1) / 2)
        for row, curves in ((above, over_width), (below, over_decay)):
            for axes, column in zip(row, COLUMNS, strict=True):
                groups = curves.get(name, {})
                intervals = [mean_interval([run.last(column) for run in group]) for group in groups.values()]
                if intervals:
                    draw_intervals(axes, [shift * value for value in groups], intervals, **style)
    for row, curves, label in ((above, over_width, "K (hidden nodes)"), (below, over_decay, f"λ, at K = {width}")):
        ticks = sorted({value for groups in curves.values() for value in groups})
        for axes, name in zip(row, COLUMNS.values(), strict=True):
            axes.set(xlabel=label, ylabel=name, xscale="log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
    figure.legend(*above[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    above[2].legend(handles=_draw_prediction(above[2], over_width), fontsize=8, loc="lower right")
    seeds = len({run.seeds for run in runs})
    figure.suptitle(
        f"{task_name(runs[0])}, row {runs[0]['max_steps']}; above at the best λ and learning rate, below at the best "
        f"learning rate, each of other seeds   (mean over {seeds} seeds, bar: its 95 % interval)", fontsize=10,
    )  # fmt: skip
    return figure


def middle_width(runs: Sequence[Run]) -> int:
    """The middle one of the widths, of two the larger."""
    widths = sorted({int(run[WIDTH]) for run in runs})
    return widths[len(widths) // 2]


def measured_factor(widths: Mapping[float, Sequence[Run]]) -> tuple[float, float, float] | None:
    """κᵃ that fits the mean coverage over K, and its 95 % interval by bootstrap over seeds.

    None for a task without a group or with blocks of several dimensions, which are not equally likely.
    """
    count = _equal_blocks(next(iter(widths.values()))[0])
    if not count:
        return None
    random = np.random.default_rng(0)
    measured = [np.array([run.last("features/coverage") for run in runs]) for runs in widths.values()]
    drawn = [each[random.integers(len(each), size=(2000, len(each)))].mean(axis=1) for each in measured]
    nodes = list(map(int, widths))
    value = fitted_factor(count, nodes, torch.tensor([each.mean() for each in measured]))
    low, high = np.quantile(fitted_factor(count, nodes, torch.from_numpy(np.stack(drawn, axis=1))), (0.025, 0.975))
    return float(value), float(low), float(high)


def _equal_blocks(run: Run) -> int:
    """The number of non-trivial blocks if all have one dimension, else 0."""
    blocks = [] if run.task.group is None else list(block_slices(run.task.group))
    return len(blocks) if len({block.stop - block.start for block in blocks}) == 1 else 0


def _draw_prediction(axes: Axes, over_width: Tuned) -> list[Line2D]:
    """Coverage of Theorem 8 over K: fitted to each optimizer, and for κᵃ = 1, ½, 0, of which it returns the lines."""
    widths = sorted({int(width) for groups in over_width.values() for width in groups})
    count = _equal_blocks(next(iter(next(iter(over_width.values())).values()))[0])

    def draw(factor: float, **style: Any) -> Line2D:
        expected = expected_coverage(count, widths[-1], factor)[widths[0] :]
        return axes.plot(np.arange(widths[0], widths[-1] + 1), expected, **style)[0]

    for index, groups in enumerate(over_width.values()):
        fit = measured_factor(groups)
        if fit is not None:
            draw(fit[0], linewidth=0.7, **curve_style(index, len(over_width)))
    styles = zip(FACTORS.items(), LINES[1:], strict=False)
    return [
        draw(factor, color=GREY, linewidth=1.2, linestyle=line, label=label)
        for (factor, label), line in styles
        if count
    ]


def _final_loss(run: Run) -> float:
    return run.last("test/loss") if run.finished else math.inf


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
