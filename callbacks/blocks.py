"""The base of callbacks that measure by isotypic block of the task's group."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from callbacks.diagnostic import Diagnostic
from li2_lightning.groups.representations import block_basis, block_slices, isotypic_blocks
from li2_lightning.log import say
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.theory.features import feature_shares


class BlockDiagnostic(Diagnostic):
    """A diagnostic with the non-trivial blocks of the group; where the task is no group it says so.

    Attributes:
        labels: the names of the blocks; empty where the task is no group, or the group has one element.
        blocks: the rows of the basis that belong to each block.
        ranks: the dimension of each block.
    """

    # The columns that are left out without a group, for the message.
    group_columns = "the columns by block"

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)
        self.labels: list[str] = []
        self.blocks: list[slice] = []
        self.ranks = torch.zeros(0)
        self._basis = torch.zeros(0, 0)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        group = pl_module.data.task.group
        if group is None:
            why = pl_module.data.task.why_no_group()
            say(f"{type(self).__name__.lower()}: {why}, so {self.group_columns} are left out.")
        elif group.order > 1:
            self.labels = [block.label for block in isotypic_blocks(group)[1:]]
            self.blocks = list(block_slices(group))
            self.ranks = torch.tensor([float(block.stop - block.start) for block in self.blocks])
            self._basis = torch.tensor(block_basis(group).T)

    def basis(self, state: StepState) -> Tensor:
        """Orthonormal rows that span the non-trivial functions, sorted by block: (M−1)×M, on the device of the row."""
        self._basis = self._basis.to(state.outputs.device, state.accumulation_dtype)
        self.ranks = self.ranks.to(self._basis)
        return self._basis

    def node_shares(self, weights: Tensor, state: StepState) -> Tensor:
        """The share of each node (columns of …×d×K weights) in each block, …×blocks×K."""
        return feature_shares(weights, self.basis(state).to(weights.dtype), self.blocks)

    def covered(self, weights: Tensor, state: StepState) -> Tensor:
        """Whether some node has more than half of itself in a block (as ``features/coverage`` counts), (blocks,)."""
        return (self.node_shares(weights, state) > 0.5).any(dim=1)
