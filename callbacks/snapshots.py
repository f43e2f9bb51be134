"""Snapshots of the weights on a logarithmic scale, for films of the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning

from callbacks.diagnostic import Cadence
from callbacks.registry import CALLBACKS
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.runs.snapshots import write_snapshot


@CALLBACKS.register("snapshots")
class Snapshots(lightning.Callback):
    """Keeps the weights from the one-hots to the nodes in ``features/row-NNNNNN.npz``, for ``li2 animate``.

    Each weight takes 2 bytes (`li2_lightning.runs.snapshots`): a default run keeps 18 files of .6 MB. A task without a
    group, and a network without weights from the one-hots to nodes, has no snapshots.

    Args:
        every_n_steps: cadence.
    """

    def __init__(self, every_n_steps: int | str = "log6") -> None:
        self.cadence = Cadence("snapshots.every_n_steps", every_n_steps)

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        due = self.cadence.due(state.step, state.is_last)
        group, weights = module.data.task.group, module.network.input_weights()
        if due and trainer.is_global_zero and group is not None and group.order > 1 and weights is not None:
            write_snapshot(Path(trainer.default_root_dir), state.step, weights)

    def state_dict(self) -> dict[str, Any]:
        return {"last_row": self.cadence.last_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cadence.last_row = state_dict["last_row"]
