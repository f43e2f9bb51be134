"""The progress of a run in the terminal."""

from __future__ import annotations

from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from callbacks.diagnostic import positive_integer
from callbacks.registry import CALLBACKS
from li2_lightning.log import tell
from li2_lightning.measurement.rows import Row
from li2_lightning.module import Li2Module
from li2_lightning.runs.terminal import describe_transition
from li2_lightning.theory.stages import Transition

SHORT_STAGES = {1: "I", 2: "II", 3: "III"}


@CALLBACKS.register("progress")
class ProgressBar(lightning.Callback):
    """Shows a live bar on a terminal, or prints lines where stdout is no terminal; prints each stage transition.

    Args:
        lines: number of lines that a run of ``max_steps`` prints where stdout is no terminal.
    """

    part = "logging"

    def __init__(self, lines: int = 10) -> None:
        self.lines = positive_integer("progress.lines", lines)
        self.console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._next_line = 0
        self._line: str | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  acc {task.fields[accuracy]}  stage {task.fields[stage]:<3}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        unknown = {"loss": "– –", "accuracy": "– –", "stage": ""}
        self._task = self._bar.add_task("", total=_total(trainer), completed=trainer.global_step, **unknown)
        self._bar.start()

    def on_row(self, trainer: lightning.Trainer, module: Li2Module, row: Row) -> None:
        step = int(row["step"] or 0)
        loss, accuracy = (_pair(row, name) for name in ("loss", "accuracy"))
        stage = SHORT_STAGES.get(int(row.get("stage/index") or 0), "–")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss, accuracy=accuracy, stage=stage)
            return
        self._line = f"step {step}/{_total(trainer) or '…'}  loss {loss}  acc {accuracy}  stage {stage}"
        if step >= self._next_line:
            spacing = max(1, (_total(trainer) or 0) // self.lines)
            self._next_line = (step // spacing + 1) * spacing
            self._print_line()

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._print_line()

    def on_stage_transition(self, trainer: lightning.Trainer, module: Li2Module, transition: Transition) -> None:
        tell(describe_transition(transition.to_dict()))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: Any) -> None:
        self._stop()

    def _print_line(self) -> None:
        """Print the line of the newest row, unless it was printed before."""
        if self._line is not None:
            tell(self._line)
            self._line = None

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _total(trainer: lightning.Trainer) -> int | None:
    """Number of steps of the run; None where no number of steps ends a user's own Trainer."""
    if trainer.max_steps >= 0:
        return trainer.max_steps
    batches, epochs = trainer.limit_train_batches, trainer.max_epochs or -1
    return batches * epochs if isinstance(batches, int) and epochs > 0 else None


def _pair(row: Row, name: str) -> str:
    """Training and test value in at most 11 characters."""
    return " ".join(
        "–" if (value := row.get(f"{split}/{name}")) is None else _short(value) for split in ("train", "test")
    )


def _short(value: float) -> str:
    return (
        f"{value:.3f}"
        if 0.001 <= abs(value) < 10 or value == 0
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")
    )
