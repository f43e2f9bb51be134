"""The base of callbacks that measure by isotypic block of the task's group."""

from __future__ import annotations

import lightning

from callbacks.diagnostic import Diagnostic
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.log import say
from li2_lightning.module import Li2Module


class BlockDiagnostic(Diagnostic):
    """A diagnostic of the non-trivial blocks of the group; where the task is no group it says so.

    Attributes:
        group: None where the task is no group, or its group has one element and thus no such block.
    """

    # The columns that are left out without a group, for the message.
    group_columns = "the columns by block"

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)
        self.group: FiniteGroup | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        group = pl_module.data.task.group
        if group is None:
            why = pl_module.data.task.why_no_group()
            say(f"{type(self).__name__.lower()}: {why}, so {self.group_columns} are left out.")
        elif group.order > 1:
            self.group = group
