"""The learned features: the irreps of every node, and the weights of the purest node of each irrep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from li2_lightning.analysis.figures.style import BLUE, DPI, ORANGE, add_panel, fixed_figure, write_png
from li2_lightning.errors import InputError, message
from li2_lightning.files import read_npz
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import block_legend, isotypic_blocks
from li2_lightning.runs.load import Run
from li2_lightning.theory.features import feature_shares

MOST_NODES = 8
# Inches: the size of the picture, the lower edge and the height of its frames, the middle of the legend, and the left
# edges and widths of the frames.
WIDTH, HEIGHT = 12.0, 4.6
BOTTOM, TALL = 0.55, HEIGHT - 0.85
LEGEND = 0.16
SHARES, SCALE, NODES = (0.75, 4.6), (5.5, 0.2), (6.6, 4.6)


def draw_features(path: Path, weights: npt.NDArray[np.inexact], group: FiniteGroup, step: int) -> Path:
    """Draw the nodes at one step into a PNG and return its path.

    Args:
        path: the file, replaced atomically.
        weights: weights from the one-hots to the nodes, (operands·M)×K.
        group: group of the task.
        step: step for the title.
    """
    return write_png(features_figure(weights, group, step), path)


def features_figure(weights: npt.NDArray[np.inexact], group: FiniteGroup, step: int) -> Figure:
    """The figure of `draw_features`."""
    figure = fixed_figure(WIDTH, HEIGHT)
    draw_panels(figure, weights, group, step)
    return figure


def learned_nodes(run: Run) -> tuple[npt.NDArray[np.inexact], FiniteGroup, int] | None:
    """Last stored weights from the one-hots to the nodes, with the group and the step.

    None if the task is no group, or the run has neither ``features/last.npz`` nor a checkpoint whose W acts on the
    one-hots.

    Raises:
        InputError: ``features/last.npz`` is damaged.
    """
    kept = run.directory / "features" / "last.npz"
    if kept.exists():
        try:
            arrays = read_npz(kept, ("W", "table", "step"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{kept} cannot be read: {message(error)}; remove it to take the weights of the last checkpoint."
            ) from error
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


def draw_panels(figure: Figure, weights: npt.NDArray[np.inexact], group: FiniteGroup, step: int) -> None:
    """The two panels of `draw_features` at the bottom of a `fixed_figure` of `WIDTH`.

    The left panel has the shares of all nodes, the right one the weights of the purest nodes. Both are one image, two
    sets of lines and texts in one system of coordinates, in inches: axes with ticks take most of the time of a picture.
    """
    labels = [block.label for block in isotypic_blocks(group)[1:]]
    wide = torch.promote_types(torch.from_numpy(weights).dtype, torch.float64)
    shares = feature_shares(torch.from_numpy(weights).to(wide), group).numpy()
    shares = np.nan_to_num(shares)
    axes = add_panel(figure, 0, 0, WIDTH, HEIGHT)
    axes.set_axis_off()
    _draw_shares(axes, shares, labels, step)
    _draw_nodes(axes, weights, shares, labels, group.order)
    for left, width in (SHARES, SCALE, NODES):
        axes.add_artist(Rectangle((left, BOTTOM), width, TALL, fill=False, linewidth=0.8))
    # Drawing an image changes the limits.
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, HEIGHT)
    axes.text(
        LEGEND,
        BOTTOM + TALL / 2,
        block_legend(group).replace("; ", ";\n"),
        rotation=90,
        ha="center",
        va="center",
        fontsize=8,
    )


def _draw_shares(axes: Axes, shares: npt.NDArray[np.floating], labels: list[str], step: int) -> None:
    """A column for each node, sorted by the block with its largest share, then by that share; and the scale."""
    order = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))
    blocks, nodes = shares.shape
    (left, width), (scale_left, scale_width) = SHARES, SCALE
    tall, wide, gap, scale_wide = (round(DPI * size) for size in (TALL, width, scale_left - left - width, scale_width))
    # Pixel by pixel the nearest value. Of colours, unlike numbers, matplotlib makes no copies.
    pixels = shares[:, order][np.arange(tall) * blocks // tall][:, np.arange(wide) * nodes // wide]
    colors, scale = (colormaps["cividis"](values, bytes=True) for values in (pixels, np.linspace(1, 0, tall)[:, None]))
    image = np.hstack([colors, np.full((tall, gap, 4), 255, np.uint8), np.repeat(scale, scale_wide, axis=1)])
    extent = left, scale_left + scale_width, BOTTOM, BOTTOM + TALL
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=extent)
    axes.text(left, BOTTOM + TALL + 0.1, f"Irreps of all {nodes} nodes at step {step}", fontsize=10)
    _label_below(axes, left, width, nodes, "nodes, sorted by their leading irrep")
    every = max(1, len(labels) // 12)
    for block in range(0, blocks, every):
        _label(axes, left - 0.08, BOTTOM + TALL * (1 - (block + 0.5) / blocks), labels[block], ha="right")
    for share in (0, 0.5, 1):
        _label(axes, scale_left + scale_width + 0.08, BOTTOM + TALL * share, f"{share:g}")
    _label(axes, scale_left + scale_width + 0.32, BOTTOM + TALL / 2, "share of ‖w‖²", rotation=90)


def _draw_nodes(
    axes: Axes, weights: npt.NDArray[np.inexact], shares: npt.NDArray[np.floating], labels: list[str], order: int
) -> None:
    """First (solid) and second operand (dashed) of the purest node of each block, the purest first."""
    purest = [(float(shares[k].max()), k, int(shares[k].argmax())) for k in range(len(labels))]
    shown = sorted(purest, reverse=True)[:MOST_NODES]
    left, width = NODES
    title = "Weights of the purest node of an irrep (first operand solid, second dashed)"
    axes.text(left, BOTTOM + TALL + 0.1, title, fontsize=10)
    curves: tuple[list[npt.NDArray[np.floating]], ...] = ([], [])
    x = left + width * np.arange(order) / max(order - 1, 1)
    for row, (share, block, node) in enumerate(shown):
        parts = weights[:, node].reshape(-1, order)[:2].real
        center, height = BOTTOM + TALL * (1 - (row + 0.5) / len(shown)), TALL / len(shown)
        for kind, part in zip(curves, parts, strict=False):
            kind.append(np.column_stack([x, center + 0.42 * height * part / max(np.abs(parts).max(), 1e-12)]))
        _label(axes, left + width + 0.05, center, f"{labels[block]}  {share:.2f}")
    for kind, color, style in zip(curves, (BLUE, ORANGE), ("-", "--"), strict=True):
        axes.add_collection(LineCollection(kind, colors=color, linestyles=style, linewidths=1), autolim=False)
    _label_below(axes, left, width, order - 1, "group element")


def _label_below(axes: Axes, left: float, width: float, last: int, name: str) -> None:
    """Whole numbers below a frame from 0 to ``last``, and the name of the quantity."""
    for tick in MaxNLocator(nbins=9, integer=True).tick_values(0, last):
        if tick <= last:
            _label(axes, left + width * tick / max(last, 1), BOTTOM - 0.14, f"{tick:g}", ha="center")
    axes.text(left + width / 2, BOTTOM - 0.4, name, ha="center", fontsize=10)


def _label(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    axes.text(x, y, text, fontsize=8, va="center", **options)
