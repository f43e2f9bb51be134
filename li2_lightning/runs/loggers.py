"""The loggers of a run beside metrics.csv: what each of them gets, and the loggers that Lightning brings along.

W&B has a module of its own (`li2_lightning.runs.wandb`), because its runs survive their process.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from li2_lightning.clock import clock
from li2_lightning.config.identity import config_hash, run_name
from li2_lightning.config.schema import Config, to_plain
from li2_lightning.errors import InputError, reason
from li2_lightning.plugins import Registry, options_of

LOGGERS: Registry[Callable[..., Logger]] = Registry("logger", "li2_lightning.loggers", makes=Logger)

PROJECT = "li2_lightning"
GENERALIZED = 0.99
"""The test accuracy from which a network has generalized, as on the terminal."""
# The folders of a run directory.
OURS = ("checkpoints", "features", "wandb")
# The packages of the extra ``loggers``, which Lightning imports when one of its loggers is built.
PACKAGES = ("tensorboard", "mlflow")


class RunLogger(Logger):
    """A logger of Lightning that also takes earlier rows, stage transitions and pictures.

    Args:
        first: the first row that the logger lacks; earlier rows are not logged again.
        earlier: the rows that were measured before this process, in order.
        more: arguments of the next class.
    """

    def __init__(self, first: int, earlier: Iterable[Mapping[str, float]], **more: Any) -> None:
        super().__init__(**more)
        self._first, self._newest = first, first - 1
        self._earlier = earlier
        self._joining: dict[int, dict[str, Any]] = {}

    @clock.part("logging")
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log_earlier_rows()
        self.take(metrics, self._newest if step is None else step)

    def log_earlier_rows(self) -> None:
        """Log the earlier rows that the logger lacks; further calls do nothing."""
        earlier, self._earlier = self._earlier, ()
        for row in earlier:
            self.take(row, int(row["step"]))

    def take(self, values: Mapping[str, Any], step: int) -> None:
        """Log ``values``, and what has joined them, as row ``step``, unless the logger has that row."""
        joined = {**values, **self._joining.pop(step, {})}
        if step >= self._first:
            self._newest = max(self._newest, step)
            self.write(joined, step)

    def join(self, step: int, values: Mapping[str, Any]) -> None:
        """Log ``values`` as part of row ``step``, which is the newest row or a later one."""
        if step > self._newest:
            self._joining.setdefault(step, {}).update(values)
        else:
            self.take(values, step)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Log ``values`` at ``step``."""
        raise NotImplementedError

    def draw(self, step: int, name: str, picture: Path) -> None:
        """Log an image file with row ``step``."""

    def mark_transition(self, event: Mapping[str, Any]) -> None:
        """Log an entry of stages.json as a point of ``stage/transition``."""
        self.join(event["step"], {"stage/transition": event["to"]})

    def mark_end(self, stages: Mapping[str, Any], step: int) -> None:
        """Log the contents of stages.json with the last row."""


def run_loggers(trainer: lightning.Trainer) -> list[RunLogger]:
    """The loggers of this trainer beside metrics.csv."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]


# -- Lightning's loggers ---------------------------------------------------------------------------------------------


class ForwardingLogger(RunLogger):
    """Hands rows to any logger of Lightning, and pictures to its ``log_image(key, images, step)`` if it has that."""

    def __init__(self, inner: Logger, earlier: Iterable[Mapping[str, float]]) -> None:
        super().__init__(0, earlier)
        self.inner: Any = inner

    @property
    def name(self) -> str | None:
        return self.inner.name  # type: ignore[no-any-return]

    @property
    def version(self) -> int | str | None:
        return self.inner.version  # type: ignore[no-any-return]

    @property
    def experiment(self) -> Any:
        """What the logger writes to."""
        return self.inner.experiment

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.inner.log_hyperparams(params, *args, **kwargs)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        self.inner.log_metrics(dict(values), step)

    def draw(self, step: int, name: str, picture: Path) -> None:
        if (log_image := getattr(self.inner, "log_image", None)) is not None:
            log_image(key=name, images=[str(picture)], step=step)

    def save(self) -> None:
        self.inner.save()

    def finalize(self, status: str) -> None:
        self.inner.finalize(status)


class TensorBoardRun(ForwardingLogger):
    """Pictures are images of TensorBoard, and the transitions a text."""

    def draw(self, step: int, name: str, picture: Path) -> None:
        from PIL import Image

        with Image.open(picture) as image:
            self.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def mark_end(self, stages: Mapping[str, Any], step: int) -> None:
        lines = [f"- step {event['step']}: {event['from']} → {event['to']}" for event in stages["events"]]
        self.experiment.add_text("stages", "\n".join([*lines, f"- stalled: {stages['stalled']}"]), step)


class MLflowRun(ForwardingLogger):
    """Pictures are artifacts of the MLflow run, and so is stages.json; whether the run stalled is a tag."""

    def draw(self, step: int, name: str, picture: Path) -> None:
        self.experiment.log_artifact(self.inner.run_id, str(picture), name)

    def mark_end(self, stages: Mapping[str, Any], step: int) -> None:
        self.experiment.log_dict(self.inner.run_id, dict(stages), "stages.json")
        self.experiment.set_tag(self.inner.run_id, "stage/stalled", str(stages["stalled"]))


@LOGGERS.register("tensorboard")
def tensorboard(save_dir: str, name: str = "tensorboard", version: str = "", prefix: str = "", **more: Any) -> Logger:
    """Event files in ``tensorboard/`` of the run directory; ``more`` goes to TensorBoard's SummaryWriter."""
    return TensorBoardLogger(save_dir, name, version, default_hp_metric=False, prefix=prefix, **more)


@LOGGERS.register("csv")
def csv(
    save_dir: str, name: str = "csv", version: str = "", prefix: str = "", flush_logs_every_n_steps: int = 100
) -> Logger:
    """Lightning's own ``metrics.csv`` and ``hparams.yaml``, in ``csv/`` of the run directory."""
    return CSVLogger(save_dir, name, version, prefix, flush_logs_every_n_steps)


@LOGGERS.register("mlflow")
def mlflow(
    run_name: str,
    experiment_name: str = PROJECT,
    tracking_uri: str | None = None,
    prefix: str = "",
    artifact_location: str | None = None,
) -> Logger:
    """A run of MLflow, at MLFLOW_TRACKING_URI where ``tracking_uri`` is null."""
    uri = tracking_uri or importlib.import_module("mlflow").get_tracking_uri()
    return MLFlowLogger(experiment_name, run_name, uri, prefix=prefix, artifact_location=artifact_location)


def _options(config: Config, directory: Path) -> dict[str, Any]:
    """``logger.options``, with the folder and the name of the run where the logger takes them."""
    parameters, _ = options_of(LOGGERS.find(config.logger.name))
    ours = {"save_dir": str(directory), "run_name": f"{run_name(config)}-s{config.seed}"}
    return {key: value for key, value in ours.items() if key in parameters} | config.logger.options


def check_logger(config: Config) -> None:
    """Raise an `InputError` if the ``logger`` section does not fit its logger, which is not W&B; write nothing."""
    logger = config.logger
    for package in PACKAGES:
        if logger.name == package and importlib.util.find_spec(package) is None:
            raise InputError(
                f"logger.name={package} needs {package}; pip install 'li2-lightning[loggers]' installs it."
            )
    LOGGERS.fit(logger.name, LOGGERS.find(logger.name), _options(config, Path()), "logger.options")
    if logger.artifacts or logger.alerts:
        raise InputError(f"logger.artifacts and logger.alerts belong to logger.name=wandb, not to {logger.name}.")


def _clear(log: str | None, directory: Path) -> None:
    """Remove the earlier log of a logger that writes into the run directory.

    Raises:
        InputError: it would write over the files of the run.
    """
    if log is None or not Path(log).resolve().is_relative_to(directory.resolve()):
        return
    parts = Path(log).resolve().relative_to(directory.resolve()).parts
    if not parts or parts[0] in OURS:
        raise InputError(
            f"The logger would write over the files of the run in {log}; choose another logger.options.name."
        )
    shutil.rmtree(log, ignore_errors=True)


def forwarding_logger(config: Config, directory: Path, earlier: Iterable[Mapping[str, float]]) -> RunLogger:
    """The logger that ``logger.name`` names, which is not W&B.

    The log of a run that continues begins anew with the earlier rows, since most loggers cannot remove the rows after a
    checkpoint. A log in the run directory is replaced; MLflow gets a further run.

    Raises:
        InputError: the logger cannot begin its log.
    """
    name = config.logger.name
    try:
        inner = LOGGERS.build(name, "logger.options", _options(config, directory))
        _clear(getattr(inner, "log_dir", None), directory)
        inner.log_hyperparams({**to_plain(config), "config_hash": config_hash(config)})
    except InputError:
        raise
    # A logger may start a database or ask a server, which fail in many ways.
    except Exception as error:
        raise InputError(f"logger.name={name} cannot begin its log: {reason(error)}.") from error
    kinds = {TensorBoardLogger: TensorBoardRun, MLFlowLogger: MLflowRun}
    kind = next((kind for known, kind in kinds.items() if isinstance(inner, known)), ForwardingLogger)
    return kind(inner, earlier)
