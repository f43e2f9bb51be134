"""What a W&B run gets from a run: rows, pictures, transitions, and on request alerts and artifacts.

wandb is imported where it is used, as in `li2_lightning.runs.wandb`, which begins and ends W&B runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import WandbLogger

from li2_lightning.clock import clock
from li2_lightning.config.identity import config_hash
from li2_lightning.config.schema import Config
from li2_lightning.errors import DivergenceError, reason
from li2_lightning.log import say
from li2_lightning.runs.loggers import GENERALIZED, LOGGERS, RunLogger

# The columns of the table of transitions, beside the evidence.
TRANSITION = ("from", "to", "step", "first_step", "lag", "caveat")

LOGGERS.register("wandb")(WandbLogger)


class WandbRun(RunLogger, WandbLogger):
    """Lightning's logger for W&B. The step of W&B is the ``step`` of the row.

    W&B keeps the newest row open until the next row begins; pictures and stage transitions are added to the open row.

    Args:
        run: the result of ``wandb.init``.
        first, earlier: as for `RunLogger`.
        config, directory: of the run.
    """

    def __init__(
        self, run: Any, first: int, earlier: Iterable[Mapping[str, float]], config: Config, directory: Path
    ) -> None:
        super().__init__(first, earlier, experiment=run)
        self._config, self._directory = config, directory
        self._generalized = False

    def take(self, values: Mapping[str, Any], step: int) -> None:
        super().take(values, step)
        if not self._generalized and (accuracy := values.get("test/accuracy", 0.0)) >= GENERALIZED:
            self._generalized = True
            if step >= self._first:
                self._alert("Generalized", f"Test accuracy is {accuracy:.3f} in row {step}.", "INFO")

    def write(self, values: Mapping[str, Any], step: int) -> None:
        self.experiment.log(values, step=step)

    @clock.part("logging")
    def draw(self, step: int, name: str, picture: Path) -> None:
        import wandb

        if step >= self._first:
            self.join(step, {name: wandb.Image(str(picture))})

    @clock.part("logging")
    def mark_transition(self, event: Mapping[str, Any]) -> None:
        """Log an entry of stages.json to the summary of the W&B run, too."""
        self.experiment.summary.update({f"stage/{event['from']}_to_{event['to']}": event})
        super().mark_transition(event)

    @clock.part("logging")
    def mark_end(self, stages: Mapping[str, Any], step: int) -> None:
        """Log a table with the transitions, and to the summary whether the run stalled."""
        import wandb

        self.experiment.summary.update({"stage/stalled": stages["stalled"]})
        if events := stages["events"]:
            evidence = sorted({name for event in events for name in event["evidence"]})
            rows: list[Any] = [
                [*(event[name] for name in TRANSITION), *map(event["evidence"].get, evidence)] for event in events
            ]
            with self._sending("the table of transitions"):
                self.join(step, {"stage/transitions": wandb.Table(columns=[*TRANSITION, *evidence], data=rows)})

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Log the chosen artifacts when the run ends or diverges within the block, and send an alert if it diverges."""
        try:
            yield
        except DivergenceError as error:
            self._alert("Diverged", str(error), "ERROR")
            self._keep_artifacts()
            raise
        self._keep_artifacts()

    def _alert(self, title: str, text: str, level: str) -> None:
        if self._config.logger.alerts:
            self.experiment.alert(title, text, level)

    @contextlib.contextmanager
    def _sending(self, what: str) -> Iterator[None]:
        """Let W&B take a table or an artifact in the block; the run goes on if W&B refuses it.

        For an online run W&B asks its server at once, which may be lost; its client then waits 20 s.
        """
        try:
            with _staging_in(self._directory):
                yield
        # The client raises errors of many libraries about what the server answers.
        except Exception as error:
            say(f"W&B did not take {what} ({reason(error)}); the run directory has it.")

    def _keep_artifacts(self) -> None:
        import wandb

        for name in self._config.logger.artifacts:
            is_folder = name == "features"
            path = self._directory / (name if is_folder else f"checkpoints/{name}.ckpt")
            if not path.exists():
                say(f"logger.artifacts={name}: this run has no {path.relative_to(self._directory)}.")
                continue
            metadata = {"config_hash": config_hash(self._config), "seed": self._config.seed}
            kind = "features" if is_folder else "checkpoint"
            artifact = wandb.Artifact(f"{name}-{self.experiment.id}", kind, metadata=metadata)
            with self._sending(str(path.relative_to(self._directory))):
                (artifact.add_dir if is_folder else artifact.add_file)(str(path))
                self.experiment.log_artifact(artifact)


def wandb_position(trainer: lightning.Trainer) -> dict[str, Any] | None:
    """The id of the W&B run, for a checkpoint; None without a W&B run."""
    found = (logger for logger in trainer.loggers if isinstance(logger, WandbRun))
    return next(({"id": str(logger.experiment.id)} for logger in found), None)


@contextlib.contextmanager
def _staging_in(directory: Path) -> Iterator[None]:
    """Let W&B copy the files that it will send into a run directory, unless WANDB_DATA_DIR names another folder.

    By default the copies lie in the user's home, where a run that is logged offline would leave them.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(directory.resolve() / "wandb")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
