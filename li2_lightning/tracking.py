"""Weights & Biases, through Lightning's logger, without ever asking for anything."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning
import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import Error as WandbError

from li2_lightning.config import Config, run_name, to_plain
from li2_lightning.errors import InputError
from li2_lightning.log import say


def has_credentials() -> bool:
    """Whether an API key for the W&B server lies in the environment or in netrc.

    W&B's own check asks the server, which would hold up a run on a machine without network.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(str(wandb.setup().settings.base_url)).hostname
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def build_wandb_logger(config: Config, directory: Path) -> WandbLogger | None:
    """The logger of a run; None for ``logger.mode=disabled``.

    ``auto`` is what WANDB_MODE says, else online where credentials exist, else offline; nothing prompts. Online without
    credentials is an `InputError`. An unreachable server is no reason to stop: the run goes on offline.
    """
    # W&B prints tips of its own otherwise; the closing table says what there is to say.
    wandb.setup(settings=wandb.Settings(silent=True))
    mode = config.logger.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_credentials() else "offline")
    if mode == "disabled":
        return None
    if mode == "online" and not has_credentials():
        raise InputError("logger.mode=online needs W&B credentials; run `wandb login` or use logger.mode=offline.")
    try:
        return _start(config, directory, mode)
    except WandbError as error:
        if mode == "offline":
            raise
        say(f"W&B cannot be reached ({str(error).splitlines()[0]}); this run is logged offline.")
        return _start(config, directory, "offline")


def _start(config: Config, directory: Path, mode: str) -> WandbLogger:
    logger = WandbLogger(
        name=f"{run_name(config)}-s{config.seed}",
        save_dir=directory,
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        tags=list(config.logger.tags),
        config=to_plain(config),
        mode=mode,
        settings=wandb.Settings(silent=True, console="off", init_timeout=30),
    )
    run = logger.experiment
    run.define_metric("step")
    run.define_metric("*", step_metric="step", step_sync=True)
    return logger


def finish_wandb(logger: WandbLogger | None, status: str) -> None:
    """Close the run, so that the next one in this process is another; a failed one is marked as such."""
    if logger is not None:
        logger.experiment.finish(exit_code=0 if status == "finished" else 1)


def wandb_runs(trainer: lightning.Trainer) -> list[Any]:
    """The W&B runs that this trainer logs to."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
