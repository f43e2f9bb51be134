"""Purity and energy of nodes trained on few samples, weighted by ‖w‖²."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.curves import draw_curves, draw_legend, explain, with_rows
from li2_lightning.analysis.figures.style import GREY, MARKERS, curve_styles, new_figure
from li2_lightning.errors import InputError
from li2_lightning.networks.activations import find_activation
from li2_lightning.runs.load import Run, groups_of_seeds
from li2_lightning.theory.features import feature_shares
from li2_lightning.theory.sampling import sampled_energy_gradient


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run at its end; each tensor is (K,), float64.

    Attributes:
        weights: ‖w‖².
        purity: largest share of a node in one non-trivial block; 0 for a node without a non-trivial part.
        energies: E of w/‖w‖ on the training rows; 0 for a node of norm zero.
    """

    weights: Tensor
    purity: Tensor
    energies: Tensor

    def mean(self, values: Tensor) -> float:
        """The mean of ``values`` over the nodes, weighted by ‖w‖².

        Weight decay leaves most nodes of a trained run with a norm near zero. Such a node still has a direction, often
        of high energy, and would dominate an unweighted mean.
        """
        return float((values * self.weights).sum() / self.weights.sum())


@FIGURES.register("fig07_small_data")
def small_data(runs: list[Run]) -> Figure:
    """Test accuracy over the step; mean purity and energy of each run; purity and energy of every node of one seed.

    Raises:
        InputError: no finished run of a group with two operands and σ = x², or a run without checkpoint.
    """
    runs = [run for run in with_rows(runs, ("test/accuracy",)) if run.finished and run.task.group is not None]
    if not runs or any(run["network.activation"] != "square" for run in runs):
        raise InputError("This picture needs finished runs of a group with network.activation=square.")
    groups = groups_of_seeds(runs)
    styles = curve_styles(groups)
    markers = {label: MARKERS[index % len(MARKERS)] for index, label in enumerate(groups)}
    found = {label: [weighed_nodes(run) for run in group] for label, group in groups.items()}
    figure = new_figure(15, 4.2)
    curve, averages, scatter = figure.subplots(1, 3)
    draw_curves([curve], ["test/accuracy"], groups, runs, styles)
    curve.set_xlabel("step (optimizer updates)")
    for label, nodes in found.items():
        color, marker = styles[label]["color"], markers[label]
        points = [(each.mean(each.purity), each.mean(each.energies)) for each in nodes]
        averages.plot(*zip(*points, strict=True), linestyle="none", marker=marker, color=color)
        _draw_nodes(scatter, nodes[0], marker, color)
    averages.set_title("means over nodes by ‖w‖², a point a seed", loc="left", fontsize=10)
    scatter.set_title("nodes of one seed, area by ‖w‖²", loc="left", fontsize=10)
    n, order = len(runs[0].split.train), runs[0].task.num_tokens
    for axes in (averages, scatter):
        fourier = order / 4 * (n / order**2) ** 2
        axes.axhline(fourier, color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel("purity")
        axes.set_ylabel("E of the unit-norm node")
        axes.grid(alpha=0.25)
    averages.annotate("a Fourier feature, (M/4)(n/M²)²", (0, fourier), xycoords=("axes fraction", "data"),
                      xytext=(4, 3), textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip
    legend = {label: {**style, "marker": markers[label]} for label, style in styles.items()}
    draw_legend(figure, legend, with_train=True, beside=len(legend) + 1)
    figure.suptitle(explain(runs), fontsize=9)
    return figure


def weighed_nodes(run: Run) -> Nodes:
    """Norm, purity and energy of every node at the end of a run of a group with two operands and σ = x²."""
    task, W = run.task, run.weights()["W"].double()
    rows = run.split.train
    left, right = torch.from_numpy(task.operands[rows]).unbind(dim=1)
    norms = torch.linalg.vector_norm(W, dim=0)
    unit = W / torch.where(norms > 0, norms, 1)
    energies, _ = sampled_energy_gradient(
        unit, left, right, torch.from_numpy(task.labels[rows]), find_activation("square")
    )
    shares = feature_shares(unit, run.group)
    return Nodes(norms.square(), shares.max(dim=0).values.nan_to_num(), energies)


def _draw_nodes(axes: Axes, nodes: Nodes, marker: str, color: object) -> None:
    sizes: Sequence[float] = (80 * nodes.weights / nodes.weights.max()).tolist()
    axes.scatter(nodes.purity.tolist(), nodes.energies.tolist(), s=sizes, marker=marker, color=color, alpha=0.5,
                 linewidths=0)  # fmt: skip
