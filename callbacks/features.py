"""Which irreducible representations (irreps) of the group the nodes have learned."""

from __future__ import annotations

import lightning
from torch import Tensor

from callbacks.blocks import BlockDiagnostic
from callbacks.registry import CALLBACKS
from li2_lightning.log import say
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.theory.features import covered, purity


@CALLBACKS.register("features")
class Features(BlockDiagnostic):
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
    group_columns = "features/purity and features/coverage"

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        super().setup(trainer, pl_module, stage)
        if pl_module.data.task.group is not None and not isinstance(pl_module.network, TwoLayerNetwork):
            say("features: this network has no nodes on the one-hots, so purity and coverage are left out.")

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        shares = state.node_shares
        if shares is None:
            return {}
        return {
            "features/purity": purity(shares),
            "features/coverage": covered(shares).sum(dim=-1),
        }
