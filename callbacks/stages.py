"""The stage transitions, named as they happen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from callbacks.registry import CALLBACKS
from li2_lightning.errors import InputError
from li2_lightning.files import write_json
from li2_lightning.losses import CrossEntropy
from li2_lightning.measurement.rows import Row
from li2_lightning.module import Li2Module, call_hook
from li2_lightning.runs.wandb import run_loggers
from li2_lightning.theory.stages import StageTracker, Thresholds, Transition

SCHEMA_VERSION = 1
# Optimizers that decouple weight decay without a flag in their parameter groups that says so.
DECOUPLED = ("Adafactor", "Lion", "Muon", "SOAP")
# What parameter groups call such a flag: torch, ours, pytorch-optimizer.
FLAGS = ("decoupled_weight_decay", "decoupled", "weight_decouple")


@CALLBACKS.register("stages")
class Stages(lightning.Callback):
    """Follows the rows with the rule of `li2_lightning.theory.stages` and records each transition.

    Column ``stage/index``: 1 lazy, 2 independent, 3 interactive; a stalled run keeps 2. Each transition goes to
    ``stages.json``, to every callback with ``on_stage_transition``, and to W&B: its summary, and a point on the charts,
    ``stage/transition``. The rule needs the columns of the gradient callback; without them the stage stays
    1 and no transition is declared.

    Args:
        thresholds: those of `li2_lightning.theory.stages.Thresholds`, by name.
    """

    # The options are the thresholds', with their defaults, named once.
    __signature__ = inspect.signature(Thresholds)

    def __init__(self, **thresholds: Any) -> None:
        try:
            self.tracker = StageTracker(Thresholds(**thresholds))
        except ValueError as error:
            raise InputError(f"callbacks.stages.{error}") from error
        self._path: Path | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        # Every rank follows the rows, so that all know of a transition; the first writes.
        self._path = Path(trainer.default_root_dir) / "stages.json" if trainer.is_global_zero else None
        self.tracker.equilibrium_caveat = no_equilibrium(pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Those of a part of the run that this W&B run may not know.
        for logger in run_loggers(trainer):
            for transition in self.tracker.transitions:
                logger.mark_transition(transition.to_dict())
        # A resumed run comes to its later transitions anew.
        if self._path is not None and self._path.exists():
            self._write()

    def on_row(self, trainer: lightning.Trainer, module: Li2Module, row: Row) -> None:
        step = int(row["step"] or 0)
        transition = self.tracker.update(step, row)
        row["stage/index"] = float(self.tracker.stage)
        if transition is not None:
            self._write()
            for logger in run_loggers(trainer):
                logger.mark_transition(transition.to_dict())
            call_hook(trainer, "on_stage_transition", module, transition)

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._write()
        for logger in run_loggers(trainer):
            logger.experiment.summary.update({"stage/stalled": self.tracker.stalled})

    def state_dict(self) -> dict[str, Any]:
        return self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tracker.load_state_dict(state_dict)

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._path, stages_document(self.tracker.transitions, self.tracker.stalled))


def stages_document(transitions: list[Transition], stalled: bool) -> Mapping[str, Any]:
    """The contents of ``stages.json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "stalled": stalled,
        "events": [transition.to_dict() for transition in transitions],
    }


def no_equilibrium(module: Li2Module) -> str | None:
    """Why the theory predicts no ridge equilibrium for this run; None where it does, or where there is no decay.

    The equilibrium F̃ᵀR = ηV is that of a squared loss with coupled decay of V. A ridge readout is at it by definition.
    """
    if isinstance(module.loss, CrossEntropy):
        return "cross-entropy has no ridge equilibrium"
    readout_optimizer = getattr(module.optimizer, "children", {}).get("output")
    while hasattr(readout_optimizer, "inner"):  # a filter before it
        readout_optimizer = readout_optimizer.inner
    by_name = type(readout_optimizer).__name__ in DECOUPLED
    for group in module.optimizer.param_groups:
        decoupled = next((group[flag] for flag in FLAGS if flag in group), by_name)
        if group["role"] == "output" and decoupled and group.get("weight_decay"):
            return "decoupled weight decay of V has no ridge equilibrium"
    return None
