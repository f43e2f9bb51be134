"""Snapshots of the weights on a logarithmic scale, for films of the features."""

from __future__ import annotations

from pathlib import Path

import lightning

from callbacks.diagnostic import Paced
from callbacks.registry import CALLBACKS
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.runs.snapshots import write_snapshot


@CALLBACKS.register("snapshots")
class Snapshots(Paced):
    """Keeps the weights from the one-hots to the nodes in ``features/row-NNNNNN.npz``, for ``li2 animate``.

    Each weight takes 2 bytes (`li2_lightning.runs.snapshots`): a default run keeps 18 files of .6 MB. A task without a
    group, and a network without weights from the one-hots to nodes, has no snapshots.

    Args:
        every_n_steps: cadence.
    """

    def __init__(self, every_n_steps: int | str = "log6") -> None:
        super().__init__(every_n_steps)

    def act(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        group, weights = module.data.task.group, module.network.input_weights()
        if trainer.is_global_zero and group is not None and group.order > 1 and weights is not None:
            write_snapshot(Path(trainer.default_root_dir), state.step, weights)
