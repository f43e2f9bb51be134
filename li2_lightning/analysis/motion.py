"""The features of a run in motion: one frame for each snapshot of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from PIL import Image

from li2_lightning.analysis.figures.style import BLUE, GREY, ORANGE, evenly, new_figure, pixels, shade_stages
from li2_lightning.errors import InputError
from li2_lightning.groups.representations import block_legend, isotypic_blocks
from li2_lightning.runs.load import Run, task_name
from li2_lightning.runs.snapshots import read_snapshot, snapshots
from li2_lightning.runs.terminal import STAGE_NAMES
from li2_lightning.theory.features import feature_shares

MOST_NODES = 6
SIZE = (11.2, 5.6)
"""Inches at 100 dots; in dots both are multiples of 16, as video encoders want."""


class Film:
    """The frames of a run: all nodes by irrep, the accuracy so far, and the weights of a few nodes.

    A node belongs to its leading irrep in the last snapshot, and keeps its place in every frame.

    Args:
        run: a run with snapshots, finished or not.
        most: the largest number of frames; the snapshots are then thinned evenly, the last included.

    Raises:
        InputError: the run has no snapshots or no rows, or a snapshot is damaged.
    """

    def __init__(self, run: Run, most: int | None = None) -> None:
        found = snapshots(run.directory)
        group = run.task.group
        if run.metrics.empty:
            raise InputError(f"{run.directory} has no rows yet, and a film shows the accuracy of each snapshot.")
        if not found or group is None:
            raise InputError(
                f"{run.directory} has no snapshots of its weights; they are kept for tasks on a group while "
                "callbacks.snapshots.enabled=true."
            )
        kept = list(found)
        if most is not None:
            kept = [kept[i] for i in evenly(len(kept), most)]
        self.run, self.group, self.steps = run, group, kept
        self.labels = [block.label for block in isotypic_blocks(group)[1:]]
        self._paths = [found[step] for step in kept]
        last = read_snapshot(self._paths[-1])
        shares = self._shares(last)
        self._leading = shares.argmax(axis=0)
        # A row for each irrep; its nodes from the left, the purest first.
        order = np.lexsort((-shares.max(axis=0), self._leading))
        counts = np.bincount(self._leading, minlength=len(shares))
        self._places = np.empty(len(order), dtype=np.int64)
        self._places[order] = np.concatenate([np.arange(count) for count in counts])
        best = sorted(((shares[k].max(), k) for k in range(len(shares))), reverse=True)[:MOST_NODES]
        self._nodes = [(k, int(shares[k].argmax())) for k in sorted(k for _, k in best)]
        self._colors = ScalarMappable(Normalize(0, 1), "magma")
        self._build(counts)

    def frames(self) -> Iterator[Image.Image]:
        """One RGB picture for each of `steps`."""
        for step, path in zip(self.steps, self._paths, strict=True):
            self._show(step, read_snapshot(path))
            # Only what moves is drawn anew, which is ten times faster.
            self._canvas.restore_region(self._still)
            for artist in self._moving:
                self._canvas.figure.draw_artist(artist)
            yield pixels(self._canvas)

    def _shares(self, weights: npt.NDArray[np.inexact]) -> npt.NDArray[np.floating]:
        """(blocks, nodes) share of every block in every node; 0 where all weights are 0."""
        return np.asarray(feature_shares(torch.from_numpy(weights), self.group).nan_to_num())

    def _build(self, counts: npt.NDArray[np.integer]) -> None:
        figure = new_figure(*SIZE)
        figure.set_dpi(100)
        # matplotlib leaves these methods of its canvas without types.
        self._canvas = cast(Any, FigureCanvasAgg(figure))
        grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
        left, upper, lower = (figure.add_subplot(part) for part in (grid[:, 0], grid[0, 1], grid[1, 1]))
        self._title = figure.suptitle("step", fontsize=13, x=0.01, ha="left")

        self._cells = np.full((len(counts), max(counts)), np.nan)
        self._image = left.imshow(self._colors.to_rgba(self._cells), aspect="auto", interpolation="nearest")
        figure.colorbar(self._colors, ax=left, label="share of ‖w‖² in that irrep", pad=0.01)
        left.set_title(f"Each of {sum(counts)} nodes, beside the irrep that it learns", loc="left", fontsize=10)
        left.set_xlabel("nodes of an irrep, the purest first")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_ylabel(block_legend(self.group), fontsize=8)
        every = max(1, len(self.labels) // 18)
        left.set_yticks(range(0, len(self.labels), every), self.labels[::every], fontsize=8)

        self._draw_accuracy(upper)
        self._draw_nodes(lower)
        curves = [line for line, _ in self._curves]
        self._moving: list[Artist] = [self._title, self._image, self._now, *curves, *self._lines]
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(figure.bbox)

    def _draw_accuracy(self, axes: Axes) -> None:
        metrics, last = self.run.metrics, max(self.steps[-1], 2)
        axes.set_xscale("log")
        axes.set_xlim(1, last)
        axes.set_ylim(-0.03, 1.03)
        shade_stages(axes, [self.run], last)
        self._curves = []
        for split, color, style in (("train", BLUE, "--"), ("test", ORANGE, "-")):
            name = f"{split}/accuracy"
            if name in metrics:
                values = metrics[name].dropna()
                axes.plot(values.index, values, style, color=GREY, alpha=0.25, linewidth=1)
                (line,) = axes.plot([], [], style, color=color, linewidth=2, label=split)
                self._curves.append((line, values))
        self._now = axes.axvline(1, color=GREY, linewidth=1)
        axes.set_title("Accuracy", loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.legend(loc="center left", fontsize=8, frameon=False)

    def _draw_nodes(self, axes: Axes) -> None:
        self._lines = []
        for row, (block, _) in enumerate(self._nodes):
            self._lines.append(axes.plot(np.full(self.group.order, float(-row)), color=BLUE, linewidth=1)[0])
            axes.annotate(self.labels[block], (1.01, -row), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                          annotation_clip=False)  # fmt: skip
        axes.set_title("Weights of the node that becomes purest in an irrep", loc="left", fontsize=10)
        axes.set_yticks([])
        axes.set_ylim(-len(self._nodes) + 0.4, 0.6)
        axes.set_xlim(0, max(self.group.order - 1, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("group element (first operand)")

    def _show(self, step: int, weights: npt.NDArray[np.inexact]) -> None:
        self._cells[self._leading, self._places] = self._shares(weights)[self._leading, np.arange(len(self._leading))]
        self._image.set_data(self._colors.to_rgba(self._cells))
        self._now.set_xdata([max(step, 1)] * 2)
        for line, values in self._curves:
            line.set_data(values.index[values.index <= step], values[values.index <= step])
        for row, (line, (_, node)) in enumerate(zip(self._lines, self._nodes, strict=True)):
            part = weights[: self.group.order, node].real
            line.set_ydata(part / (2.4 * max(np.abs(part).max(), 1e-12)) - row)
        stage = max([1, *(stage for stage, entered in self.run.entered.items() if entered <= step)])
        named = f"   stage {STAGE_NAMES[stage]}" if self.run.stages else ""
        self._title.set_text(f"{task_name(self.run)}   step {step}{named}")
