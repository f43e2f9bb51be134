"""Which irreducible representations (irreps) of the group the nodes have learned."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from callbacks.diagnostic import Diagnostic
from callbacks.registry import CALLBACKS
from li2_lightning.groups.representations import block_basis, block_slices
from li2_lightning.log import say
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.theory.features import feature_shares


@CALLBACKS.register("features")
class Features(Diagnostic):
    """How much of each node lies in one isotypic block of the group (a conjugate pair of irreps is one block).

    Π_k is the projector on block k, applied to each operand's part of w after the trivial part is removed:

    ==================  ===================================================================
    features/purity     mean over nodes of max_k ‖Π_k w_j‖²/‖w_j‖²
    features/coverage   number of blocks k in which some node has ‖Π_k w_j‖²/‖w_j‖² > .5
    ==================  ===================================================================

    A task without a group has neither column.

    Args:
        every_n_steps: cadence.
    """

    takes_stacks = True

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)
        self._basis: Tensor | None = None
        self._slices: list[slice] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        group = pl_module.data.task.group
        if group is None:
            why = pl_module.data.task.why_no_group()
            say(f"features: {why}, so features/purity and features/coverage are left out.")
        elif not isinstance(pl_module.network, TwoLayerNetwork):
            say("features: this network has no nodes on the one-hots, so purity and coverage are left out.")
        elif group.order > 1:
            self._basis = torch.tensor(block_basis(group).T)
            self._slices = list(block_slices(group))

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        weights = state.network.input_weights()
        if self._basis is None or weights is None:
            return {}
        self._basis = self._basis.to(weights.device, weights.dtype)
        shares = feature_shares(weights, self._basis, self._slices)
        return {
            "features/purity": shares.amax(dim=-2).nanmean(dim=-1),
            "features/coverage": (shares > 0.5).any(dim=-1).sum(dim=-1),
        }
