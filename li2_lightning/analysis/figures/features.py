"""The learned features: the irreps of every node, and the weights of the purest node of each irrep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from li2_lightning.analysis.figures.style import BLUE, ORANGE, new_figure, save
from li2_lightning.errors import InputError
from li2_lightning.files import read_npz
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import block_basis, block_legend, block_slices, isotypic_blocks
from li2_lightning.runs.load import Run
from li2_lightning.theory.features import feature_shares

MOST_NODES = 8


def draw_features(path: Path, weights: npt.NDArray[np.inexact], group: FiniteGroup, step: int) -> Path:
    """Draw the nodes at one step into a PNG and return its path.

    Args:
        path: the file, replaced atomically.
        weights: weights from the one-hots to the nodes, (operands·M)×K.
        group: group of the task.
        step: step for the title.
    """
    return save(features_figure(weights, group, step), path)


def features_figure(weights: npt.NDArray[np.inexact], group: FiniteGroup, step: int) -> Figure:
    """The figure of `draw_features`."""
    figure = new_figure(12, 4.6)
    left, right = figure.subplots(1, 2)
    draw_panels(left, right, weights, group, step)
    return figure


def learned_nodes(run: Run) -> tuple[npt.NDArray[np.inexact], FiniteGroup, int] | None:
    """Last stored weights from the one-hots to the nodes, with the group and the step.

    None if the task is no group, or the run has neither ``features/last.npz`` nor a checkpoint whose W acts on the
    one-hots.
    """
    kept = run.directory / "features" / "last.npz"
    if kept.exists():
        arrays = read_npz(kept, ("W", "table", "step"))
        return arrays["W"], FiniteGroup("", arrays["table"]), int(arrays["step"])
    try:
        weights, group = run.weights(), run.task.group
    except InputError:
        return None
    if group is None or "E" in weights or "W" not in weights or len(run.metrics) == 0:
        return None
    W = weights["W"].numpy()
    if len(W) % group.order or len(W) < 2 * group.order:
        return None
    return W, group, int(run.metrics.index[-1])


def draw_panels(left: Axes, right: Axes, weights: npt.NDArray[np.inexact], group: FiniteGroup, step: int) -> None:
    """The two panels of `draw_features`: the shares of all nodes, and the weights of the purest nodes."""
    labels = [block.label for block in isotypic_blocks(group)[1:]]
    basis = torch.tensor(block_basis(group).T)
    wide = torch.promote_types(torch.from_numpy(weights).dtype, torch.float64)
    shares = feature_shares(torch.from_numpy(weights).to(wide), basis.to(wide), block_slices(group)).numpy()
    _draw_shares(left, np.nan_to_num(shares), labels, step)
    left.set_ylabel(block_legend(group), fontsize=8)
    _draw_nodes(right, weights, np.nan_to_num(shares), labels, group.order)


def _draw_shares(axes: Axes, shares: npt.NDArray[np.floating], labels: list[str], step: int) -> None:
    """A column for each node, sorted by the block with its largest share, then by that share."""
    order = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))
    scale = ScalarMappable(Normalize(0, 1), "cividis")
    # Of numbers, unlike colours, matplotlib makes a dozen copies at the size of the picture, more than a run's weights.
    axes.imshow(scale.to_rgba(shares[:, order], bytes=True), aspect="auto", interpolation="nearest")
    assert axes.figure is not None
    axes.figure.colorbar(scale, ax=axes, label="share of ‖w‖²")
    axes.set_title(f"Irreps of all {shares.shape[1]} nodes at step {step}", loc="left", fontsize=10)
    axes.set_xlabel("nodes, sorted by their leading irrep")
    every = max(1, len(labels) // 12)
    axes.set_yticks(range(0, len(labels), every), labels[::every], fontsize=8)


def _draw_nodes(
    axes: Axes, weights: npt.NDArray[np.inexact], shares: npt.NDArray[np.floating], labels: list[str], order: int
) -> None:
    """First (solid) and second operand (dashed) of the purest node of each block, the purest first."""
    purest = [(float(shares[k].max()), k, int(shares[k].argmax())) for k in range(len(labels))]
    shown = sorted(purest, reverse=True)[:MOST_NODES]
    axes.set_title(
        "Weights of the purest node of an irrep (first operand solid, second dashed)", loc="left", fontsize=10
    )
    for row, (share, block, node) in enumerate(shown):
        parts = weights[:, node].reshape(-1, order)[:2].real
        height = 2.4 * max(np.abs(parts).max(), 1e-12)
        for part, color, style in zip(parts, (BLUE, ORANGE), ("-", "--"), strict=False):
            axes.plot(part / height - row, style, color=color, linewidth=1)
        axes.annotate(f"{labels[block]}  {share:.2f}", (1.01, -row), xycoords=("axes fraction", "data"), va="center",
                      fontsize=8, annotation_clip=False)  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(-len(shown) + 0.4, 0.6)
    axes.set_xlim(0, max(order - 1, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("group element")
