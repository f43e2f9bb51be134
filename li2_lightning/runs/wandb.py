"""Weights & Biases through Lightning's logger. W&B never prompts here.

wandb is imported where it is used, because its import takes a fifth as long as torch's, and some runs do without it.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import lightning

from li2_lightning._compat import (
    SYNCED,
    WANDB_SEGMENT,
    WandbMessages,
    inspect_segment,
    read_wandb_environment,
    wandb_environment,
    wandb_reason,
)
from li2_lightning.clock import clock
from li2_lightning.config.identity import config_hash, run_name
from li2_lightning.config.schema import Config, to_plain
from li2_lightning.errors import InputError
from li2_lightning.log import say
from li2_lightning.runs.checkpoints import Start
from li2_lightning.runs.directory import RunDirectory
from li2_lightning.runs.loggers import PROJECT, check_logger, forwarding_logger
from li2_lightning.runs.metrics_csv import MetricsFile, read_rows
from li2_lightning.runs.wandb_run import WandbRun

# W&B's own limit is many minutes. Rows are sent during the run, so few are left at its end.
FINISH_SECONDS = 60.0
# Older names of two modes.
MODES = {"run": "online", "dryrun": "offline"}


def has_credentials() -> bool:
    """Whether the environment or netrc holds an API key for the W&B server.

    W&B's own check asks the server, which would delay a run on a machine without network.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(str(wandb_environment().base_url)).hostname
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(config: Config) -> str:
    """The mode of the run: online, offline or disabled; "other" where another logger than W&B is chosen.

    For ``logger.mode=auto`` it is WANDB_MODE, else online where credentials exist, else offline.

    Raises:
        InputError: online without credentials; W&B refuses a value of the config or of the environment, or another
            logger refuses its options.
    """
    if config.logger.mode == "disabled":
        return "disabled"
    if config.logger.name != "wandb":
        check_logger(config)
        return "other"
    if config.logger.options:
        raise InputError("logger.options belongs to other loggers; W&B has keys of its own, such as logger.project.")
    # W&B sends reports of its own errors to another server; if that fails, it delays the exit and prints a line.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    try:
        read_wandb_environment()
    except ValueError as error:
        raise InputError(f"A WANDB_… variable of the environment does not fit W&B: {wandb_reason(error)}.") from error
    mode = config.logger.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_credentials() else "offline")
        mode = MODES.get(mode, mode)
    if mode == "online" and not has_credentials():
        raise InputError("logger.mode=online needs W&B credentials; run `wandb login` or use logger.mode=offline.")
    for key, setting in (("project", "project"), ("entity", "entity"), ("group", "run_group"),
                         ("job_type", "run_job_type"), ("tags", "run_tags")):  # fmt: skip
        value = getattr(config.logger, key)
        try:
            # Checked here because W&B itself checks a value only when the run begins.
            wandb.Settings.model_validate({setting: tuple(value) if key == "tags" and value else value})
        except (wandb.errors.Error, ValueError) as error:
            raise InputError(f"logger.{key}={value!r} does not fit W&B: {wandb_reason(error)}.") from error
    return mode


@contextlib.contextmanager
def logging_to(
    trainer: lightning.Trainer, config: Config, directory: Path, mode: str, start: Start | None
) -> Iterator[None]:
    """Give ``trainer`` its loggers, metrics.csv first, and close the W&B run, if there is one, when the block ends.

    A resumed run continues the same W&B run. Offline, each part of a W&B run is a folder, called a segment; all
    segments have the id of the run. Rows of metrics.csv that W&B lacks are sent first: rows lost by a kill, rows logged
    in another mode, and all rows where a longer run has another directory. If the W&B server cannot be reached, the
    run is logged offline. If the connection is lost later, W&B tries until `FINISH_SECONDS` after the end of the run;
    a message then says which command sends the missing rows from the disk.

    Args:
        mode: the result of `wandb_mode`.
        start: the checkpoint from which the run continues; None at row 0.
    """
    metrics, through = directory / "metrics.csv", None if start is None else start.row
    trainer.loggers = [MetricsFile(metrics, through)]
    if mode == "disabled":
        yield
        return
    earlier = () if through is None or not metrics.exists() else read_rows(metrics, through)
    if mode == "other":
        trainer.loggers = [*trainer.loggers, forwarding_logger(config, directory, earlier)]
        yield
        return
    with _wandb_run(config, directory, mode, None if start is None else start.wandb, earlier) as logger:
        trainer.loggers = [*trainer.loggers, logger]
        with logger.ending():
            yield


@contextlib.contextmanager
def reporting_to_agent(config: Config, directory: RunDirectory) -> Iterator[None]:
    """While a stored result is read, report it to an agent of W&B as if the run had just been trained.

    An agent waits for the metric of every run that it starts. An error within the block, such as the error of a
    diverged run, marks the agent's run as failed. Without an agent nothing is reported.
    """
    summary = None if config.force or "WANDB_SWEEP_ID" not in os.environ else directory.summary()
    if summary is None or (mode := wandb_mode(config)) in ("disabled", "other"):
        yield
        return
    rows = read_rows(directory.path / "metrics.csv")
    with _wandb_run(config, directory.path, mode, None, rows) as logger, logger.ending():
        stages, last = summary["stages"], summary["final"]["step"]
        for event in () if stages is None else stages["events"]:
            logger.mark_transition(event)
        logger.log_earlier_rows()
        if stages is not None:
            logger.mark_end(stages, last)
        if (report := directory.path / "report.png").exists():
            logger.draw(last, "report", report)
        yield


@contextlib.contextmanager
def _wandb_run(
    config: Config,
    directory: Path,
    mode: str,
    position: Mapping[str, Any] | None,
    earlier: Iterable[Mapping[str, float]],
) -> Iterator[WandbRun]:
    """A W&B run for the block; an error within the block marks the W&B run as failed."""
    import wandb

    messages = WandbMessages()
    try:
        logger = _start(config, directory, mode, position, earlier)
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        say(f"W&B cannot be reached ({str(error).splitlines()[0]}); this run is logged offline.")
        logger = _start(config, directory, "offline", position, earlier)
    run = logger.experiment
    exit_code = 1
    try:
        yield logger
        exit_code = 0
    finally:
        # The next run in this process must be another W&B run.
        try:
            with clock.part("logging"):
                run.finish(exit_code=exit_code)
        except (TimeoutError, KeyboardInterrupt):
            # Ctrl-C ends only the wait for W&B: training is over, and its results are written.
            messages.upload_failed = True
        if messages.upload_failed:
            command = sync_command(directory)
            say(f"W&B did not receive all of this run; it is complete on disk, and `{command}` sends it.")
        elif not run.offline:
            # W&B has the rows of every segment now, so each segment gets the mark of `wandb sync`.
            for segment in segments(directory, str(run.id)):
                (segment / f"run-{run.id}{SYNCED}").touch()


@clock.part("logging")
def _start(
    config: Config,
    directory: Path,
    mode: str,
    position: Mapping[str, Any] | None,
    earlier: Iterable[Mapping[str, float]],
) -> WandbRun:
    """Begin a W&B run, or a further segment of one.

    A value of the config has priority over the environment, and the environment over the defaults here.
    """
    import wandb

    environment = wandb_environment()
    run_id = environment.run_id
    # A trial of W&B's agent is always a new run.
    if run_id is None and environment.sweep_id is None:
        if before := segments(directory):
            run_id = _run_id(before[-1])
        elif position is not None:
            run_id = position["id"]
    first = 0
    if run_id is not None:
        first = _first_missing_row(directory, run_id, mode)
        # W&B names a folder by run and second; a segment of the same second would overwrite the last one.
        while any((directory / "wandb").glob(f"*run-{datetime.now():%Y%m%d_%H%M%S}-{run_id}")):
            time.sleep(0.1)
    logger = config.logger
    name = f"{run_name(config)}-s{config.seed}"
    tags = logger.tags if logger.tags is not None else environment.run_tags
    before_init = set(segments(directory))
    try:
        run = wandb.init(
            id=run_id,
            resume="allow",
            name=name if config.name is not None else environment.run_name or name,
            dir=os.environ.get("WANDB_DIR") or directory.resolve(),
            project=logger.project or environment.project or PROJECT,
            entity=logger.entity or environment.entity,
            group=logger.group or environment.run_group,
            job_type=logger.job_type or environment.run_job_type or "train",
            tags=tags if tags is not None else [config.task.name, str(config.optimizer.hidden["name"])],
            # The hash groups the runs that differ in their seed alone.
            config={**to_plain(config), "config_hash": config_hash(config)},
            mode=cast(Any, mode),
            settings=wandb.Settings(
                silent=True,
                console="off",
                # The runs of a stack are open at the same time.
                reinit="create_new",
                init_timeout=30,
                finish_timeout=FINISH_SECONDS
                if "WANDB_FINISH_TIMEOUT" not in os.environ
                else environment.finish_timeout,
                finish_timeout_raises=True,
            ),
        )
    except wandb.errors.Error:
        # `wandb sync` would stop at the empty segment.
        for segment in set(segments(directory)) - before_init:
            _remove(segment)
        raise
    _link(Path(run.dir).parent, directory)
    run.define_metric("step")
    run.define_metric("*", step_metric="step", step_sync=True)
    return WandbRun(run, max(first, run.starting_step), earlier, config, directory)


# -- segments: the folders that W&B writes --------------------------------------------------------------------------


def segments(directory: Path, run_id: str | None = None) -> list[Path]:
    """The folders of a W&B run in a run directory, in the order in which they were begun.

    Args:
        run_id: the id of the W&B run; None is the run of the newest folder.
    """
    found = sorted(
        (match[1], path)
        for path in (directory / "wandb").glob("*run-*")
        if (match := WANDB_SEGMENT.fullmatch(path.name)) and path.exists()
    )
    run_id = _run_id(found[-1][1]) if found and run_id is None else run_id
    return [path for _, path in found if _run_id(path) == run_id]


def sync_command(directory: Path) -> str | None:
    """The command that sends the unsent segments of a run to W&B; None where all were sent."""
    unsent = [segment for segment in segments(directory) if not _is_sent(segment)]
    online = [] if all(segment.name.startswith("offline-") for segment in unsent) else ["--include-online"]
    return shlex.join(["wandb", "sync", *online, *map(str, unsent)]) if unsent else None


def _run_id(segment: Path) -> str:
    match = WANDB_SEGMENT.fullmatch(segment.name)
    assert match is not None
    return match[2]


def _is_sent(segment: Path) -> bool:
    return any(segment.glob(f"*{SYNCED}"))


def _first_missing_row(directory: Path, run_id: str, mode: str) -> int:
    """One more than the last row in the segments of a run; online, in the segments that W&B has received.

    A segment that a kill cut off is removed, because `wandb sync` would stop there and send no later segment.
    """
    first = 0
    for segment in segments(directory, run_id):
        content = inspect_segment(segment)
        if content is None or content["exit_code"] is None:
            _remove(segment)
        elif content["step"] is not None and (mode != "online" or _is_sent(segment)):
            first = max(first, content["step"] + 1)
    return first


def _remove(segment: Path) -> None:
    shutil.rmtree(segment.resolve())
    if segment.is_symlink():
        segment.unlink()


def _link(segment: Path, directory: Path) -> None:
    """Link a segment into the run directory if WANDB_DIR has put it elsewhere."""
    name = directory / "wandb" / segment.name
    if not name.exists():
        name.parent.mkdir(exist_ok=True)
        name.symlink_to(segment.resolve(), target_is_directory=True)
