"""Weights & Biases, through Lightning's logger, without ever asking for anything.

wandb is imported where it is used: it takes as long as a fifth of torch, and a run without it need not wait.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning
from lightning.pytorch.loggers import WandbLogger

from li2_lightning.config import Config, run_name, to_plain
from li2_lightning.errors import InputError
from li2_lightning.log import say
from li2_lightning.metrics_file import MetricsFile
from li2_lightning.run_directory import Start

# W&B alone goes on trying for many minutes when its server is gone. Rows are sent all along: little is left at the end.
FINISH_SECONDS = 60.0


def has_credentials() -> bool:
    """Whether an API key for the W&B server lies in the environment or in netrc.

    W&B's own check asks the server, which would hold up a run on a machine without network.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(str(wandb.setup().settings.base_url)).hostname
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(config: Config) -> str:
    """online, offline or disabled; nothing prompts.

    ``auto`` is what WANDB_MODE says, else online where credentials exist, else offline.

    Raises:
        InputError: online without credentials; a value that W&B refuses, of the config or of the environment.
    """
    if config.logger.mode == "disabled":
        return "disabled"
    # What W&B tells its makers about itself: a server that fails would delay the exit and print a line of its own.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Set up once a process, and silent: W&B prints tips otherwise; the closing table says what there is to say.
    try:
        wandb.setup(settings=wandb.Settings(silent=True))
    except ValueError as error:
        raise InputError(f"A WANDB_… variable of the environment does not fit W&B: {_reason(error)}.") from error
    mode = config.logger.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_credentials() else "offline")
    if mode == "online" and not has_credentials():
        raise InputError("logger.mode=online needs W&B credentials; run `wandb login` or use logger.mode=offline.")
    for key, setting in (("project", "project"), ("entity", "entity"), ("group", "run_group"),
                         ("job_type", "run_job_type"), ("tags", "run_tags")):  # fmt: skip
        value = getattr(config.logger, key)
        try:
            # What W&B would refuse once the run has begun.
            wandb.Settings.model_validate({setting: tuple(value) if key == "tags" else value})
        except (wandb.errors.Error, ValueError) as error:
            raise InputError(f"logger.{key}={value!r} does not fit W&B: {_reason(error)}.") from error
    return mode


def _reason(error: Exception) -> str:
    """What W&B's settings have against a value, without what they say around it."""
    line = re.sub(r"\s+", " ", str(error).partition(" [type=")[0]).rpartition("Value error, ")[2]
    return re.sub(r"^\d+ validation errors? for Settings ", "", line).rstrip(".")


@contextlib.contextmanager
def logging_to(
    trainer: lightning.Trainer, config: Config, directory: Path, mode: str, start: Start | None
) -> Iterator[None]:
    """Give ``trainer`` its loggers, metrics.csv first, and close the W&B run when the block ends.

    A resumed run goes on in the same W&B run; offline that is a further segment of it, a folder of its own with the
    same id. An unreachable W&B server is no reason to stop: the run goes on offline. One that is lost later is tried
    until the run ends and `FINISH_SECONDS` longer; what it did not get is on disk for ``wandb sync``, and said.

    Args:
        mode: of `wandb_mode`.
        start: what the run continues from; None at row 0.
    """
    trainer.loggers = [MetricsFile(directory / "metrics.csv", None if start is None else start.row)]
    position = None if start is None else start.wandb
    if mode == "disabled":
        yield
        return
    import wandb
    from wandb.errors import Error as WandbError

    unheard = Unheard()
    wandb.termsetup(wandb.setup().settings, unheard)
    try:
        logger = _start(config, directory, mode, position)
    except WandbError as error:
        if mode == "offline":
            raise
        say(f"W&B cannot be reached ({str(error).splitlines()[0]}); this run is logged offline.")
        logger = _start(config, directory, "offline", position)
    trainer.loggers = [*trainer.loggers, logger]
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        # So that the next run in this process is another, and a failed one is marked as such.
        run = logger.experiment
        try:
            run.finish(exit_code=exit_code)
        except (TimeoutError, KeyboardInterrupt):
            # Ctrl-C while it waits is about the waiting: training is over, and what came of it is written.
            unheard.upload_failed = True
        if unheard.upload_failed:
            segment = directory / "wandb" / Path(run.dir).parent.name
            command = shlex.join(["wandb", "sync", "--include-online", str(segment)])
            say(f"W&B did not receive all of this run; it is complete on disk, and `{command}` sends it.")


class Unheard:
    """What W&B, which is silent here, would have printed; of all that only a failed upload is of interest.

    Attributes:
        upload_failed: whether W&B gave up sending; it tells nowhere else.
    """

    def __init__(self) -> None:
        self.upload_failed = False

    def warning(self, message: str) -> None:
        self.upload_failed |= "error while uploading" in message

    info = error = warning


def _start(config: Config, directory: Path, mode: str, position: Mapping[str, Any] | None) -> WandbLogger:
    import wandb

    if position is not None:
        # W&B names the folder by run and second, and a segment of the same second would take the place of the last.
        while any((directory / "wandb").glob(f"*run-{datetime.now():%Y%m%d_%H%M%S}-{position['id']}")):
            time.sleep(0.1)
    own = "WANDB_FINISH_TIMEOUT" in os.environ
    seconds = wandb.setup().settings.finish_timeout if own else FINISH_SECONDS
    logger = WandbLogger(
        id=None if position is None else position["id"],
        name=f"{run_name(config)}-s{config.seed}",
        save_dir=directory.resolve(),
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        job_type=config.logger.job_type or "train",
        tags=list(config.logger.tags) or [config.task.name, str(config.optimizer.hidden["name"])],
        config=to_plain(config),
        mode=mode,
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=30, finish_timeout=seconds, finish_timeout_raises=True
        ),
    )
    run = logger.experiment
    run.define_metric("step")
    run.define_metric("*", step_metric="step", step_sync=True)
    if position is not None:
        # W&B counts what it is told; a segment that began at 0 again would write over the one before.
        run.log({}, step=position["step"], commit=False)
    return logger


def wandb_position(trainer: lightning.Trainer) -> dict[str, Any] | None:
    """The id of the W&B run and its own count of what it was told; None without a run."""
    for run in wandb_runs(trainer):
        return {"id": str(run.id), "step": int(run.step)}
    return None


def wandb_runs(trainer: lightning.Trainer) -> list[Any]:
    """The W&B runs that this trainer logs to."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
