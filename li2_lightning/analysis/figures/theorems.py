"""Theorems 4 and 8 in runs of energy ascent: which maxima remain, and how many nodes it takes to find all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.phase_diagram import by_task, by_width, count_irreps, half_crossing
from li2_lightning.analysis.figures.style import (
    BLUE,
    COLORS,
    GREY,
    MARKERS,
    ORANGE,
    curve_style,
    draw_intervals,
    new_figure,
    share_interval,
)
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, grouped
from li2_lightning.theory.energy import block_shares
from li2_lightning.theory.muon import (
    collection_times,
    independent_collection_time,
    muon_collection_time,
    orthogonal_maxima,
    simulate_blocking,
    simulate_collection,
)

SHRINK = 0.5
"""κ of Theorem 8 for equal norms."""


@FIGURES.register("thm04_boundary")
def boundary(runs: list[Run]) -> Figure:
    """The share of irreps in which some node ends, and the mean purity of the nodes, over the training fraction.

    Raises:
        InputError: no finished run of a group with features/coverage.
    """
    series = _by_fraction(_finished(runs, "features/coverage"))
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for index, (name, groups) in enumerate(series.items()):
        style = curve_style(index, len(series))
        x = list(groups)
        _band(left, x, [[covered_share(run) for run in group] for group in groups.values()], index, style, name)
        purities = [[run.last("features/purity") for run in group] for group in groups.values()]
        _band(right, x, purities, index, style, name)
        half = half_crossing(x, [float(np.mean([covered_share(run) for run in group])) for group in groups.values()])
        if half is not None:
            left.plot(half, 0.5, marker="x", color=style["color"], markersize=9, markeredgewidth=2)
            left.annotate(f"{half:.3f}", (half, 0.5), xytext=(6, -12 - 11 * index), textcoords="offset points",
                          color=style["color"], fontsize=8)  # fmt: skip
    left.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    left.set_ylabel("share of irreps in which some node ends")
    right.set_ylabel("features/purity: mean over nodes")
    for axes in (left, right):
        axes.set_xlabel("fraction of the pairs, n/M²")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
    left.legend(fontsize=8)
    count = max(len(group) for groups in series.values() for group in groups.values())
    figure.suptitle(
        f"energy ascent on random samples; line: mean over up to {count} seeds, band: lowest to highest seed",
        fontsize=10,
    )
    return figure


@FIGURES.register("thm08_collectors")
def collectors(runs: list[Run]) -> Figure:
    """Irreps found over the number of nodes, and nodes needed for a complete collection; a row for each task.

    The nodes of all seeds form one sequence. The Muon curves are simulated from the shares that ascent found.

    Raises:
        InputError: no finished run of a group, or too few nodes for one collection.
    """
    tasks = by_task(_finished(runs, "features/coverage"))
    figure = new_figure(10, 3.8 * len(tasks))
    for (name, group), (left, right) in zip(tasks.items(), figure.subplots(len(tasks), 2, squeeze=False), strict=True):
        draws, count = found_blocks(group)
        times = collection_times(draws, count).double()
        if not len(times):
            raise InputError(f"The {len(draws)} nodes of {name} hold no complete collection; use a larger width.")
        p = torch.bincount(draws, minlength=count).double() / len(draws)
        _draw_found(left, draws, p, count)
        _draw_times(right, times, p)
        left.set_title(f"{name}: {len(draws)} nodes, {count} irreps", loc="left", fontsize=10)
    return figure


@FIGURES.register("thm08_muon")
def all_at_once(runs: list[Run]) -> Figure:
    """How often K nodes that ascend at once have every irrep, each node by itself or all by Muon; a panel a task.

    Hollow markers are the control: the nodes of all seeds of one K, dealt to the seeds at random.
    """
    tasks = by_task(_finished(runs, "features/coverage"))
    figure = new_figure(10, 4 * ((len(tasks) + 1) // 2))
    for axes, (name, group) in zip(figure.subplots((len(tasks) + 1) // 2, 2).flat, tasks.items(), strict=False):
        optimizers = sorted({str(run["optimizer.hidden.name"]) for run in group})
        for index, optimizer in enumerate(optimizers):
            widths = by_width([run for run in group if run["optimizer.hidden.name"] == optimizer])
            style = {"color": COLORS[index], "marker": MARKERS[index]}
            shares = {width: complete_shares(members) for width, members in widths.items()}
            label = optimizer.rpartition(":")[2]
            together = [share_interval(int(found.sum()), len(found)) for found, _ in shares.values()]
            draw_intervals(axes, [K * 1.03 ** (index - 0.5) for K in shares], together, label=label, **style)
            dealt = [float(share) for _, share in shares.values()]
            axes.plot(list(shares), dealt, linestyle=":", linewidth=1, markerfacecolor="none", markersize=7,
                      label=f"{label}, its nodes dealt to the seeds", **style)  # fmt: skip
        _draw_models(axes, [run for run in group if run["optimizer.hidden.name"] == optimizers[-1]])
        axes.set_title(f"{name}: {count_irreps(group[0])} irreps", loc="left", fontsize=10)
        axes.set_xlabel("K (nodes)")
        axes.set_ylabel("share of seeds with every irrep")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure


def complete_shares(runs: Sequence[Run]) -> tuple[Tensor, float]:
    """Which of some runs of one width have a node in every irrep, (runs,), and the share of them if nodes are dealt.

    Nodes are dealt to the runs at random, 1,000 times. Each node is as before, but the nodes of a run have learned in
    different runs, so the share is that of independent nodes.
    """
    count = count_irreps(runs[0])
    found = torch.stack([_blocks_of_nodes(run) for run in runs])
    generator = torch.Generator().manual_seed(0)
    orders = torch.rand(1000, found.numel(), generator=generator).argsort(dim=1)
    dealt = found.flatten()[orders].reshape(-1, *found.shape)
    return _all_found(found, count), float(_all_found(dealt, count).double().mean())


def _blocks_of_nodes(run: Run) -> Tensor:
    """The block with more than half of each final node; −1 for a node without one; (nodes,)."""
    share, block = block_shares(run.weights()["W"].double(), run.group).max(dim=0)
    return torch.where(share > 0.5, block, -1)


def _all_found(blocks: Tensor, count: int) -> Tensor:
    """Whether 0 … count−1 are all among the nodes, (…, nodes) → (…)."""
    return torch.stack([(blocks == block).any(dim=-1) for block in range(count)]).all(dim=0)


def _draw_models(axes: Axes, runs: Sequence[Run]) -> None:
    """Independent draws, and the urn of orthogonal maxima, for the shares of the irreps among the nodes of the runs."""
    found = torch.cat([_blocks_of_nodes(run) for run in runs])
    p = torch.bincount(found[found >= 0], minlength=count_irreps(runs[0])).double()
    p /= p.sum()
    generator = torch.Generator().manual_seed(0)
    nodes = np.arange(1, max(int(run["network.width"]) for run in runs) + 1)
    for times, line, label in (
        (simulate_collection(p, 1.0, 20_000, generator), "-", "independent draws"),
        (simulate_blocking(p, orthogonal_maxima(runs[0].group), 20_000, generator), "--", "orthogonal gradients (urn)"),
    ):
        share = np.searchsorted(times.sort().values.numpy(), nodes, side="right") / len(times)
        axes.plot(nodes, share, color=GREY, linestyle=line, linewidth=1, label=label)


def covered_share(run: Run) -> float:
    """features/coverage of the last row over the number of non-trivial blocks."""
    return run.last("features/coverage") / count_irreps(run)


def found_blocks(runs: Sequence[Run]) -> tuple[Tensor, int]:
    """The block with the largest share of each final node, (nodes,), run after run; and the number of blocks.

    Raises:
        InputError: a run has no checkpoint.
    """
    blocks = [block_shares(run.weights()["W"].double(), run.group).argmax(dim=0) for run in runs]
    return torch.cat(blocks), count_irreps(runs[0])


def _finished(runs: Sequence[Run], column: str) -> list[Run]:
    chosen = [run for run in runs if run.finished and run.task.group is not None and column in run.metrics]
    if not chosen:
        raise InputError(f"This picture needs finished runs of a group with the column {column}.")
    return chosen


def _by_fraction(runs: Sequence[Run]) -> dict[str, dict[float, list[Run]]]:
    """The runs of each task and training fraction, sorted by number of elements, then by fraction."""
    ordered = sorted(runs, key=lambda run: run.train_fraction)
    return {name: grouped(group, lambda run: run.train_fraction) for name, group in by_task(ordered).items()}


def _band(
    axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], index: int, style: dict[str, object], label: str
) -> None:
    axes.plot(x, [np.mean(each) for each in values], marker=MARKERS[index % len(MARKERS)], markersize=4, label=label,
              **style)  # type: ignore[arg-type]  # fmt: skip
    axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=str(style["color"]), alpha=0.2, lw=0)


def _draw_found(axes: Axes, draws: Tensor, p: Tensor, count: int) -> None:
    """Mean share of irreps in disjoint stretches of k nodes, beside 1 − mean (1−p)^k."""
    sizes = np.unique(np.geomspace(1, max(2, len(draws) // 8), 24).astype(int))
    sizes = sizes[sizes <= 12 * count]
    means = [
        np.mean([len(set(part.tolist())) / count for part in torch.split(draws, int(k)) if len(part) == k])
        for k in sizes
    ]
    axes.plot(sizes, means, linestyle="none", marker="o", markersize=4, color=BLUE, label="nodes of the runs")
    k = np.geomspace(1, sizes[-1], 200)
    axes.plot(k, [1 - float(((1 - p) ** each).mean()) for each in k], color=GREY, label="independent draws, 1 − (1−p)ᵏ")
    axes.set_xscale("log")
    axes.set_xlabel("nodes looked at")
    axes.set_ylabel("share of irreps found")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _draw_times(axes: Axes, times: Tensor, p: Tensor) -> None:
    """Share of collections complete over the number of nodes, beside simulated draws without and with Muon's factor."""
    generator = torch.Generator().manual_seed(0)
    for factor, color, line, label, mean in (
        (1.0, GREY, "-", "independent draws", independent_collection_time(p)),
        (SHRINK, ORANGE, "--", f"Muon, κ = {SHRINK:g}", muon_collection_time(p, SHRINK)),
    ):
        simulated = simulate_collection(p, factor, 20_000, generator).sort().values
        label = f"{label}: T = {float(mean):.1f}"
        axes.plot(simulated, np.linspace(0, 1, len(simulated)), color=color, linestyle=line, label=label)
    error = float(times.std() / len(times) ** 0.5) if len(times) > 1 else float("nan")
    label = f"nodes of the runs: {float(times.mean()):.1f} ± {error:.1f} ({len(times)} collections)"
    share = (np.arange(len(times)) + 1) / len(times)
    axes.plot(times.sort().values, share, drawstyle="steps-post", color=COLORS[0], label=label)
    axes.set_xlabel("nodes until every irrep is found")
    axes.set_ylabel("share of collections complete")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
