"""Checkpoints: to continue a killed or diverged run, and to keep chosen networks."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import IO, Any

import lightning
import torch
from torch import Tensor

from callbacks.diagnostic import Cadence, positive_integer
from callbacks.registry import CALLBACKS
from li2_lightning._compat import dump_checkpoint
from li2_lightning.clock import clock
from li2_lightning.errors import DivergenceError, InputError
from li2_lightning.files import link_or_copy, replacing, row_files
from li2_lightning.measurement.rows import Position, Row
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.libraries import library, use_library
from li2_lightning.runs.checkpoints import WINDOW, check_plain, remove_windows
from li2_lightning.runs.metrics_csv import rows_written
from li2_lightning.runs.wandb_run import wandb_position
from li2_lightning.seeds import plain_random_state, random_state, random_state_from, set_random_state
from li2_lightning.theory.stages import Transition


@CALLBACKS.register("checkpoint")
class Checkpoint(lightning.Callback):
    """Writes checkpoints of chosen rows into ``checkpoints/``.

    * ``row-NNNNNN.ckpt`` at the cadence, and ``last.ckpt``, a link to the newest of these files;
    * ``row-NNNNNN.window``: state of callbacks that is much larger than the weights (``window_dict()``), of the newest
      row-….ckpt alone; `Updates` says what a run lacks that continues from another one;
    * ``best.ckpt``: the earliest row with the highest test accuracy so far;
    * ``stage-2.ckpt``, ``stage-3.ckpt``: the row in which that stage was declared.

    A checkpoint of row t holds the weights after t updates, the config and the row. row-….ckpt also hold the states
    after row t of the optimizer, the schedules, every callback and every source of random numbers; the number of rows
    in metrics.csv; the library of matrix products; and the id of the W&B run. So a run can continue from them, and from
    best.ckpt and stage-….ckpt only with ``resumable``. A file is written once row t is known to be finite, and replaces
    an older file atomically.

    The best row stays in memory until the next row-… file is written. A run that is killed before then continues from
    an earlier row, and reaches the best row again. On an accelerator ``best`` and ``transitions`` need each row before
    the weights change, which costs one synchronization a row.

    Args:
        every_n_steps: cadence; the last row and an interrupted row are written, too.
        keep: the number of row-… files beside the file of the last row, of which the oldest is removed first; or
            ``all``.
        best: whether best.ckpt is written.
        transitions: whether stage-….ckpt are written.
        resumable: whether best.ckpt and stage-….ckpt hold the whole state, as row-….ckpt do.
    """

    part = "checkpoints"

    def __init__(
        self,
        every_n_steps: int | str = 100,
        keep: int | str = 2,
        best: bool = True,
        transitions: bool = True,
        resumable: bool = False,
    ) -> None:
        self.cadence = Cadence("checkpoint.every_n_steps", every_n_steps)
        if isinstance(keep, str) and keep != "all":
            raise InputError(
                f"callbacks.checkpoint.keep={keep!r} does not fit; it is an integer of at least 1, or all."
            )
        self.keep = None if keep == "all" else positive_integer("checkpoint.keep", keep)
        for option, value in (("best", best), ("transitions", transitions), ("resumable", resumable)):
            if not isinstance(value, bool):
                raise InputError(f"callbacks.checkpoint.{option}={value!r} does not fit; it is true or false.")
        self.best, self.transitions, self.resumable = best, transitions, resumable
        self._due = False
        self._best_accuracy = -math.inf
        self._is_best = False
        self._reached: int | None = None
        self._best_snapshot: dict[str, Any] | None = None
        # The random states before the forward pass of a step, which a resumed run repeats, and after it.
        self._resumed_random: dict[str, Any] | None = None
        self._position = Position()

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        self._position = pl_module.position
        # An earlier run of this process may have continued from a checkpoint with another library.
        use_library(None)

    # -- which rows -------------------------------------------------------------------------------------------------

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        # Row 0 is the initial weights, which the seed gives; the last row is saved by on_last_row.
        self._due = self.cadence.due(state.step) and state.step > 0 and not state.is_last
        self._position.is_needed = self._due or self.best or self.transitions

    def on_row(self, trainer: lightning.Trainer, module: Li2Module, row: Row) -> None:
        accuracy = row.get("test/accuracy")
        if self.best and accuracy is not None and accuracy > self._best_accuracy:
            self._best_accuracy, self._is_best = accuracy, True

    def on_stage_transition(self, trainer: lightning.Trainer, module: Li2Module, transition: Transition) -> None:
        if self.transitions:
            self._reached = transition.target

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._resumed_random is not None:
            set_random_state(self._resumed_random["before"])

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self._resumed_random is not None:
            set_random_state(self._resumed_random["after"])
            self._resumed_random = None
        self._keep(trainer, row_file=self._due)

    def on_interrupt(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._keep(trainer, row_file=True)

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._keep(trainer, row_file=True, is_last=True)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        # The best row before the divergence may still be in memory.
        if isinstance(exception, DivergenceError):
            self._write_best(trainer)

    # -- state for a resumed run ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_row": self.cadence.last_row,
            "best_accuracy": self._best_accuracy,
            "library": library(),
            "random": {
                "before": plain_random_state(self._position.random_state),
                "after": plain_random_state(random_state()),
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cadence.last_row = state_dict["last_row"]
        self._best_accuracy = state_dict["best_accuracy"]
        self._resumed_random = {moment: random_state_from(plain) for moment, plain in state_dict["random"].items()}
        use_library(state_dict.get("library"))

    # -- files ------------------------------------------------------------------------------------------------------

    @clock.part(part)
    def _keep(self, trainer: lightning.Trainer, row_file: bool, is_last: bool = False) -> None:
        """Write the checkpoints of this row, or keep them in memory; the weights are still those of this row."""
        if self._is_best:
            self._best_snapshot = None  # frees its memory before the next copy is made
            self._best_snapshot, self._is_best = copy.deepcopy(_snapshot(trainer, self.resumable)), False
        if self._reached is not None:
            _write(trainer, _snapshot(trainer, self.resumable), f"stage-{self._reached}.ckpt")
            self._reached = None
        if row_file:
            self._due = False
            self._write_best(trainer)
            name, checkpoint = f"row-{trainer.global_step:06d}", _snapshot(trainer, resumable=True)
            # The window is written before its checkpoint, and the older window is removed after both, so a run that is
            # killed in between continues from a checkpoint with its window.
            if windows := _windows(trainer):
                _write(trainer, windows, name + WINDOW)
            _write(trainer, checkpoint, f"{name}.ckpt")
            if trainer.is_global_zero:
                self._tidy(trainer, is_last)

    def _write_best(self, trainer: lightning.Trainer) -> None:
        if self._best_snapshot is not None:
            _write(trainer, self._best_snapshot, "best.ckpt")
            self._best_snapshot = None

    def _tidy(self, trainer: lightning.Trainer, is_last: bool) -> None:
        """Link last.ckpt to the newest row's file, and remove the oldest files.

        The file of the last row does not count for ``keep``, since only a longer run continues from it. A run that is
        killed after the last row continues from the row before, which keeps its window until the run has ended.
        """
        folder = _folder(trainer)
        rows = row_files(folder, ".ckpt")
        newest = rows.pop(trainer.global_step) if is_last else rows[trainer.global_step]
        link_or_copy(newest, folder / "last.ckpt")
        if self.keep is not None:
            for path in list(rows.values())[: -self.keep]:
                path.unlink()
        remove_windows(folder, keep=2 if is_last else 1)


def _folder(trainer: lightning.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def _snapshot(trainer: lightning.Trainer, resumable: bool) -> dict[str, Any]:
    """A checkpoint of the run in plain containers (`check_plain`); it shares its tensors with the run.

    Args:
        resumable: whether it holds the whole state, or the weights, the config and the row.
    """
    checkpoint = dump_checkpoint(trainer, weights_only=not resumable)
    if resumable:
        checkpoint["li2_lightning"] |= {"rows": rows_written(trainer), "wandb": wandb_position(trainer)}
    else:
        # As large as the weights, and needed for a further update only.
        checkpoint["li2_lightning"].pop("train_point", None)
    weights = checkpoint["state_dict"]
    # A weight may be a slice of a larger tensor, which torch would save whole.
    checkpoint["state_dict"] = {name: value.clone() if _is_slice(value) else value for name, value in weights.items()}
    check_plain(checkpoint)
    return checkpoint


def _is_slice(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.nbytes


def _windows(trainer: lightning.Trainer) -> dict[str, Any]:
    """The ``window_dict()`` of each callback that has one, by its ``state_key``."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    windows = {callback.state_key: callback.window_dict() for callback in callbacks if hasattr(callback, "window_dict")}
    check_plain(windows)
    return windows


def _write(trainer: lightning.Trainer, checkpoint: dict[str, Any], name: str) -> None:
    """Write one file atomically, after every row up to this one is in metrics.csv."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        logger.save()
    folder = _folder(trainer)
    folder.mkdir(exist_ok=True)
    with replacing(folder / name) as temporary, temporary.open("wb") as file:
        stream = _Stream(file)
        torch.save(checkpoint, stream)
        if stream.error is not None:
            raise stream.error


class _Stream:
    """A file that keeps its first error, because torch replaces an error during its writing by an unrelated error.

    Args:
        file: open for writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            self.file.flush()
