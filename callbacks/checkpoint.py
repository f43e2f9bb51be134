"""What a killed or diverged run is continued from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning

from callbacks.diagnostic import Cadence, positive_integer
from callbacks.registry import CALLBACKS
from li2_lightning.files import replacing
from li2_lightning.module import Li2Module
from li2_lightning.state import StepState


@CALLBACKS.register("checkpoint")
class Checkpoint(lightning.Callback):
    """Keeps ``checkpoints/row-NNNNNN.ckpt`` and, as another name of the newest, ``checkpoints/last.ckpt``.

    A checkpoint of row t holds the weights after t updates, the optimizer's and every callback's state after row t. It
    is written only once the row is known to be finite, and takes its place in one move.

    Args:
        every_n_steps: cadence; the last row and an interrupted one are kept, too.
        keep: how many row-… files stay; the oldest go first.
    """

    def __init__(self, every_n_steps: int = 100, keep: int = 2) -> None:
        self.cadence = Cadence("checkpoint.every_n_steps", every_n_steps)
        self.keep = positive_integer("checkpoint.keep", keep)
        self._due = False

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        # Row 0 is the initial weights, which the seed gives; the last row is saved by on_last_row.
        self._due = self.cadence.due(state.step) and 0 < state.step < trainer.max_steps

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self._due:
            pl_module.hand_over()
            self._save(trainer)

    def on_interrupt(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._save(trainer)

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"last_row": self.cadence.last_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cadence.last_row = state_dict["last_row"]

    def _save(self, trainer: lightning.Trainer) -> None:
        self._due = False
        folder = Path(trainer.default_root_dir) / "checkpoints"
        folder.mkdir(exist_ok=True)
        path = folder / f"row-{trainer.global_step:06d}.ckpt"
        if not trainer.is_global_zero:
            # Nothing is written here, but Lightning waits for every rank.
            trainer.save_checkpoint(path)
            return
        for logger in trainer.loggers:
            logger.save()
        with replacing(path) as temporary:
            trainer.save_checkpoint(temporary)
        with replacing(folder / "last.ckpt") as temporary:
            os.link(path, temporary)
        for old in sorted(folder.glob("row-*.ckpt"), key=lambda path: int(path.stem[4:]))[: -self.keep]:
            old.unlink()
