"""The energy E whose gradient every node follows in stage II (Theorem 1 of arXiv:2509.21519)."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from callbacks.diagnostic import Diagnostic
from callbacks.registry import CALLBACKS
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.log import say
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.base import EVALUATION_BLOCK
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.theory.energy import column_norms, energy, unit_energy


@CALLBACKS.register("energy")
class Energy(Diagnostic):
    """E(w) = ½‖Ỹᵀσ(Xw)‖² on the training rows, for the nodes of the first hidden layer scaled to ‖w‖ = 1 (Theorem 1).

    Columns:

    ================  =================================================================================
    energy/mean       mean over nodes
    energy/max        maximum over nodes
    energy/relative   the maximum divided by (best E*)·(n/N)², where E* = M/(2d_R) are the maxima of
                      Theorem 2 (corrected); only for σ = x², two operands of a group, real weights
    ================  =================================================================================

    w are the weights from the one-hots to a node; with a trainable embedding they are a column of E·W. For a
    homogeneous σ without batch norm E is scaled to unit norm; otherwise σ is evaluated once more at unit norm.

    Args:
        every_n_steps: cadence.
    """

    takes_stacks = True

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)
        self._best: float | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        network, task = pl_module.network, pl_module.data.task
        if not isinstance(network, TwoLayerNetwork):
            say("energy: this network has no nodes on the one-hots, so the energy columns are left out.")
        elif (
            task.group is not None
            and task.num_operands == 2
            and network.config.activation == "square"
            and not (network.config.complex_weights or network.config.inner_product)
        ):
            best = max(
                task.group.order / (2 * block.real_dimension)
                for block in isotypic_blocks(task.group)
                if not block.trivial
            )
            self._best = best * (len(pl_module.data.train) / len(task.labels)) ** 2

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        if not isinstance(state.network, TwoLayerNetwork):
            return {}
        energies = unit_energies(state.network, state)
        largest = energies.nan_to_num(-torch.inf).amax(dim=-1)
        columns: dict[str, Tensor | float] = {"energy/mean": energies.nanmean(dim=-1), "energy/max": largest}
        if self._best is not None:
            columns["energy/relative"] = largest / self._best
        return columns


def unit_energies(network: TwoLayerNetwork, state: StepState) -> Tensor:
    """E of every node of the first hidden layer at unit norm, (…, K)."""
    if is_homogeneous(network):
        return scaled_energies(network, state.target_input_features)
    return computed_energies(network, state.tokens, state.centered_targets)


def is_homogeneous(network: TwoLayerNetwork) -> bool:
    """Whether a node's features are proportional to a power of ‖w‖."""
    return network.node_degree is not None and not network.config.batch_norm


def scaled_energies(network: TwoLayerNetwork, products: Tensor) -> Tensor:
    """½‖Sᵀσ(Xw)‖² of every node of a homogeneous network at unit norm, (…, K), from SᵀF (…×C×K)."""
    assert network.node_degree is not None
    return unit_energy(energy(products), column_norms(network.input_weights()), network.node_degree)


def computed_energies(network: TwoLayerNetwork, tokens: Tensor, side: Tensor) -> Tensor:
    """The same from S (``side``, …×n×C), for every σ; the nodes are evaluated anew at unit norm."""
    weights = network.input_weights()
    norms = column_norms(weights).unsqueeze(-2)
    unit = torch.where(norms > 0, weights / norms, torch.nan)
    blocks = zip(tokens.split(EVALUATION_BLOCK, -2), side.to(weights.dtype).split(EVALUATION_BLOCK, -2), strict=True)
    products = [S.mT @ network.node_features(rows, unit) for rows, S in blocks]
    return energy(torch.stack(products).sum(dim=0))
