"""One run of a sweep, in the leader's process, in a worker on this machine, or in a job of a cluster.

No launcher lets its workers save their state: joblib kills its workers, submitit's jobs outlive the process that starts
them, and neither forwards a signal. So the processes of a sweep share a folder, since every kind of process has files:

    settings.json   the settings of all runs
    leader.lock     locked by the process that leads the sweep; any content asks every run to save its state and end
    KEY.json        the outcome of one run so far
    KEY.lock        locked by the process that trains this run
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch

from li2_lightning.cli.hydra_errors import one_sentence
from li2_lightning.config.schema import Config
from li2_lightning.errors import BusyError, Interrupted
from li2_lightning.files import is_locked, lock, write_json
from li2_lightning.runs.directory import RunDirectory, RunResult
from li2_lightning.runs.terminal import print_summary
from li2_lightning.sweeps.plan import Outcome, key

LEADER = "leader.lock"
POLL_S = 0.2
# How long a run waits for its directory, in which a worker of a killed sweep may still save its state.
DIRECTORY_S = 30.0


class Leading(Protocol):
    """The part of `li2_lightning.sweeps.lead.Sweep` that the runs in the process of the sweep call."""

    def announce(self, job_directory: Path) -> None: ...

    def stop(self, signum: int) -> SystemExit: ...


# The sweep that this process leads; None in a worker.
leading: Leading | None = None
# In a worker: whether a run may be sent SIGTERM, and the folders that a thread watches.
_running = threading.Event()
_watched: set[Path] = set()


class _Stopped(BaseException):
    """Stops a worker outside the fit. It is no Exception, because libraries replace those by their own."""


def run_in_sweep(run: Callable[[Config], RunResult], read: Callable[[], Config], folder: Path) -> None:
    """Train one run of a sweep and write its outcome into ``folder``, the folder of the sweep.

    An unfinished run continues (``resume=auto``) unless the config sets ``resume`` or ``force``.
    """
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        # The queue has started this run after the end of the sweep.
        return
    on_this_machine = settings["on_this_machine"]
    if leading is None and folder not in _watched:
        _watched.add(folder)
        threading.Thread(target=_watch, args=(folder, on_this_machine), name="sweep leader", daemon=True).start()
    if not _is_led(folder, on_this_machine):
        return
    config = read()
    if config.resume is None and not config.force:
        config.resume = "auto"
    if config.logger.group is None:
        config.logger.group = os.environ.get("WANDB_RUN_GROUP") or settings["group"]
    if config.logger.job_type is None:
        config.logger.job_type = os.environ.get("WANDB_JOB_TYPE") or "sweep"
    directory = RunDirectory.of(config).path
    note, mark = folder / f"{key(directory)}.json", folder / f"{key(directory)}.lock"
    outcome = Outcome("running", began=time.time())
    with lock(mark):
        write_json(note, asdict(outcome))
        try:
            if leading is not None:
                leading.announce(directory)
                result = _run_when_free(run, config, directory)
                print_summary(result.summary, result.directory)
            else:
                with _as_worker(settings["threads"], outcome):
                    # A leader that ended before this line is noticed here, a later end by the watching thread.
                    if not _is_led(folder, on_this_machine):
                        raise _Stopped
                    _run_when_free(run, config, directory)
            outcome.state = "done"
        except _Stopped:
            outcome.state, outcome.reason = "stopped", "Stopped before training began or after it ended."
        except Interrupted as error:
            outcome.state, outcome.reason = "stopped", str(error)
            if leading is not None:
                raise leading.stop(error.signum) from error
        except Exception as error:
            outcome.state, outcome.reason = "failed", one_sentence(error)
            outcome.trace = "".join(traceback.format_exception(error)) if config.debug else None
        finally:
            outcome.seconds = time.time() - outcome.began
            if folder.exists():
                write_json(note, asdict(outcome))


def _is_led(folder: Path, on_this_machine: bool) -> bool:
    """Whether a process leads the sweep and has not asked its runs to stop."""
    try:
        asked_to_stop = (folder / LEADER).stat().st_size > 0
    except FileNotFoundError:
        return False
    # Other machines may not see the lock.
    return not asked_to_stop and (not on_this_machine or is_locked(folder / LEADER))


def _watch(folder: Path, on_this_machine: bool) -> None:
    """In a worker: stop the run when `_is_led` ends, and end the process when the leader has ended."""
    while _is_led(folder, on_this_machine):
        time.sleep(POLL_S)
    if _running.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
    if on_this_machine:
        while _running.is_set() or is_locked(folder / LEADER):
            time.sleep(POLL_S)
        # A worker of joblib would wait some minutes for another run.
        os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _as_worker(threads: int | None, outcome: Outcome) -> Iterator[None]:
    """Set up a worker for the run in the block: threads, stderr kept in ``outcome``, and signals stop the run."""
    if threads is not None:
        torch.set_num_threads(threads)
    handlers = {caught: signal.signal(caught, _interrupt) for caught in (signal.SIGINT, signal.SIGTERM)}
    errors = io.StringIO()
    try:
        with open(os.devnull, "w") as nobody, contextlib.redirect_stdout(nobody), contextlib.redirect_stderr(errors):
            _running.set()
            yield
    finally:
        _running.clear()
        for caught, handler in handlers.items():
            signal.signal(caught, handler)
        outcome.stderr = [line for line in errors.getvalue().splitlines() if line.strip()]


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Handle a signal outside the fit; the fit has a handler of its own."""
    raise _Stopped


def _run_when_free(run: Callable[[Config], RunResult], config: Config, directory: Path) -> RunResult:
    """Run once no other process writes the directory; `BusyError` if another process writes it after `DIRECTORY_S`."""
    deadline = time.monotonic() + DIRECTORY_S
    while True:
        while is_locked(directory / ".lock") and time.monotonic() < deadline:
            time.sleep(POLL_S)
        try:
            return run(config)
        except BusyError:
            # Another process took the lock first.
            if time.monotonic() >= deadline:
                raise
