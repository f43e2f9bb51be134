"""Declares the stage transitions of a run while it trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning

from callbacks.registry import CALLBACKS
from li2_lightning.errors import InputError
from li2_lightning.files import write_json
from li2_lightning.losses import Loss
from li2_lightning.measurement.rows import Row, call_hook
from li2_lightning.module import Li2Module
from li2_lightning.runs.loggers import run_loggers
from li2_lightning.theory.stages import INDEPENDENCE, StageTracker, Thresholds, layer_column

SCHEMA_VERSION = 1
# Optimizers with decoupled weight decay whose parameter groups have no flag for it.
DECOUPLED = ("Adafactor", "Lion", "Muon", "SOAP")
# The names of that flag in the parameter groups of torch, of this project, and of pytorch-optimizer.
FLAGS = ("decoupled_weight_decay", "decoupled", "weight_decouple")


@CALLBACKS.register("stages")
class Stages(lightning.Callback):
    """Applies the rule of `li2_lightning.theory.stages` to every row and records each transition.

    Column ``stage/index``: 1 lazy, 2 independent, 3 interactive; a stalled run keeps 2. Each transition goes to
    ``stages.json``, to every callback with ``on_stage_transition``, and to W&B (its summary, and the chart
    ``stage/transition``). The rule needs the columns of the gradient callback; without them the stage stays 1 and no
    transition is declared.

    With the columns of the callback ``depth`` the rule is applied to each hidden layer l as well: column
    ``stage/<l>/index``, and an entry of ``layers`` in ``stages.json``. No callback is told of a layer's transitions.

    Args:
        thresholds: fields of `li2_lightning.theory.stages.Thresholds`, by name.
    """

    # The registry reads the options and their defaults from here; Thresholds is the one place that lists them.
    __signature__ = inspect.signature(Thresholds)

    def __init__(self, **thresholds: Any) -> None:
        try:
            self.tracker = StageTracker(Thresholds(**thresholds))
        except ValueError as error:
            raise InputError(f"callbacks.stages.{error}") from error
        self.layers: list[StageTracker] = []
        self._path: Path | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        # Every rank applies the rule, so that callbacks on all ranks learn of a transition; the first rank writes.
        self._path = Path(trainer.default_root_dir) / "stages.json" if trainer.is_global_zero else None
        self.tracker.equilibrium_caveat = no_equilibrium(pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # W&B may lack the transitions of an earlier part of the run.
        for logger in run_loggers(trainer):
            for transition in self.tracker.transitions:
                logger.mark_transition(transition.to_dict())
        # Transitions after the row that a resumed run continues from are removed; the run declares them again.
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
        self._follow_layers(step, row)

    def _follow_layers(self, step: int, row: Row) -> None:
        while layer_column(INDEPENDENCE, len(self.layers) + 1) in row:
            self._add_layer()
        declared = [tracker.update(step, row) for tracker in self.layers]
        for tracker in self.layers:
            row[f"stage/{tracker.layer}/index"] = float(tracker.stage)
        if any(declared):
            self._write()

    def _add_layer(self) -> None:
        whole = self.tracker
        self.layers.append(StageTracker(whole.thresholds, whole.equilibrium_caveat, layer=len(self.layers) + 1))

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._write()
        for logger in run_loggers(trainer):
            logger.mark_end(stages_document(self.tracker, self.layers), module.last_row)

    def state_dict(self) -> dict[str, Any]:
        return {**self.tracker.state_dict(), "layers": [tracker.state_dict() for tracker in self.layers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(state_dict)
        self.layers = []
        for state in own.pop("layers", []):
            self._add_layer()
            self.layers[-1].load_state_dict(state)
        self.tracker.load_state_dict(own)

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._path, stages_document(self.tracker, self.layers))


def stages_document(tracker: StageTracker, layers: Sequence[StageTracker] = ()) -> Mapping[str, Any]:
    """The contents of ``stages.json``: of the network, and of each hidden layer where the layers are followed."""
    of_layers = {"layers": [_followed(layer) for layer in layers]} if layers else {}
    return {"schema_version": SCHEMA_VERSION, **_followed(tracker), **of_layers}


def _followed(tracker: StageTracker) -> dict[str, Any]:
    return {"stalled": tracker.stalled, "events": [transition.to_dict() for transition in tracker.transitions]}


def no_equilibrium(module: Li2Module) -> str | None:
    """Why the theory predicts no ridge equilibrium for this run; None where it predicts one, or V has no weight decay.

    The equilibrium F̃ᵀR = ηV belongs to a squared loss with coupled weight decay of V. A ridge readout satisfies it by
    definition.
    """
    if type(module.loss).summed_error is Loss.summed_error:  # no squared loss
        return f"the loss {type(module.loss).__name__} has no ridge equilibrium"
    readout_optimizer = getattr(module.optimizer, "children", {}).get("output")
    while hasattr(readout_optimizer, "inner"):  # a gradient filter around the optimizer
        readout_optimizer = readout_optimizer.inner
    by_name = type(readout_optimizer).__name__ in DECOUPLED
    for group in module.optimizer.param_groups:
        decoupled = next((group[flag] for flag in FLAGS if flag in group), by_name)
        if group["role"] == "output" and decoupled and group.get("weight_decay"):
            return "decoupled weight decay of V has no ridge equilibrium"
    return None
