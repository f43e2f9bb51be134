"""One run of a sweep, in the leader's process, in a worker on this machine, or in a job of a cluster.

No launcher lets its workers save their state: joblib kills its workers, submitit's jobs outlive the process that starts
them, and neither forwards a signal. So the processes of a sweep share a folder, since every kind of process has files:

    settings.json   the settings of all runs
    leader.lock     locked by the process that leads the sweep; any content asks every run to save its state and end
    KEY.json        the outcome of one run so far
    KEY.lock        locked by the process that trains this run
    KEY.stack       the configs of the runs that are trained together with this run, which is the first of them
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from li2_lightning.cli.hydra_errors import one_sentence
from li2_lightning.config.checks import load_config
from li2_lightning.config.schema import Config, to_plain
from li2_lightning.errors import BusyError, Interrupted
from li2_lightning.files import is_locked, lock, write_json
from li2_lightning.runs.directory import RunDirectory, RunResult
from li2_lightning.runs.terminal import print_summary
from li2_lightning.sweeps.plan import Job, Outcome, key

LEADER = "leader.lock"
POLL_S = 0.2
# How long a run waits for its directory, in which a worker of a killed sweep may still save its state.
DIRECTORY_S = 30.0


class Leading(Protocol):
    """The part of `li2_lightning.sweeps.lead.Sweep` that the runs in the process of the sweep call."""

    def announce(self, job_directories: Sequence[Path]) -> None: ...

    def stop(self, signum: int) -> SystemExit: ...


# Trains several runs together; calls a function with the place of a run and its result or error when it has ended.
RunStack = Callable[[Sequence[Config], Callable[[int, RunResult | Exception], None]], Any]

# The sweep that this process leads; None in a worker.
leading: Leading | None = None
# In a worker: whether a run may be sent SIGTERM, and the folders that a thread watches.
_running = threading.Event()
_watched: set[Path] = set()


class _Stopped(BaseException):
    """Stops a worker outside the fit. It is no Exception, because libraries replace those by their own."""


def write_stack(folder: Path, stack: Sequence[Job]) -> None:
    """Write which runs are trained together with the first of ``stack``, for `run_in_sweep`."""
    path = folder / f"{key(stack[0].directory)}.stack"
    if len(stack) > 1:
        write_json(path, [to_plain(job.config) for job in stack if job.config is not None])
    else:
        path.unlink(missing_ok=True)


def run_in_sweep(
    run: Callable[[Config], RunResult], run_stack: RunStack, read: Callable[[], Config], folder: Path
) -> None:
    """Train a run of a sweep, or the stack of which it is the first, and write every outcome into ``folder``.

    An unfinished run continues (``resume=auto``) unless the config sets ``resume`` or ``force``.

    Args:
        folder: the folder of the sweep.
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
    stack = folder / f"{key(RunDirectory.of(config).path)}.stack"
    configs = (
        [load_config(plain) for plain in json.loads(stack.read_text(encoding="utf-8"))] if stack.exists() else [config]
    )
    for config in configs:
        _complete(config, settings)
    with contextlib.ExitStack() as locks:
        runs = [_Noted(config, folder, len(configs)) for config in configs]
        for noted in runs:
            locks.enter_context(lock(noted.mark))
            noted.write()
        try:
            if leading is not None:
                leading.announce([noted.directory for noted in runs])
                _train(run, run_stack, runs)
            else:
                with _as_worker(settings["threads"], runs[0].outcome):
                    # A leader that ended before this line is noticed here, a later end by the watching thread.
                    if not _is_led(folder, on_this_machine):
                        raise _Stopped
                    _train(run, run_stack, runs)
        except _Stopped:
            for noted in runs:
                noted.stop("Stopped before training began or after it ended.")
        except Interrupted as error:
            for noted in runs:
                noted.stop(str(error))
            if leading is not None:
                raise leading.stop(error.signum) from error
        # An error that belongs to no single run of a stack.
        except Exception as error:
            for noted in runs:
                noted.end(error)
        finally:
            for noted in runs:
                noted.write()


def _complete(config: Config, settings: dict[str, Any]) -> None:
    """What a sweep sets in the config of each of its runs."""
    if config.resume is None and not config.force:
        config.resume = "auto"
    if config.logger.group is None:
        config.logger.group = os.environ.get("WANDB_RUN_GROUP") or settings["group"]
    if config.logger.job_type is None:
        config.logger.job_type = os.environ.get("WANDB_JOB_TYPE") or "sweep"


class _Noted:
    """One run of a sweep, with its outcome in the folder of the sweep."""

    def __init__(self, config: Config, folder: Path, together: int) -> None:
        self.config, self.directory = config, RunDirectory.of(config).path
        self.mark = folder / f"{key(self.directory)}.lock"
        self.outcome = Outcome("running", began=time.time(), together=together)
        self._note = folder / f"{key(self.directory)}.json"

    def write(self) -> None:
        if self._note.parent.exists():
            write_json(self._note, asdict(self.outcome))

    def end(self, result: RunResult | Exception) -> None:
        """Note the result, or the error by which the run ended; an outcome that stands already stays."""
        outcome = self.outcome
        if outcome.state != "running":
            return
        outcome.seconds = (time.time() - outcome.began) / outcome.together
        if isinstance(result, Interrupted):
            outcome.state, outcome.reason = "stopped", str(result)
        elif isinstance(result, Exception):
            outcome.state, outcome.reason = "failed", one_sentence(result)
            outcome.trace = "".join(traceback.format_exception(result)) if self.config.debug else None
        else:
            outcome.state = "done"
            if leading is not None:
                print_summary(result.summary, result.directory)
        self.write()

    def stop(self, reason: str) -> None:
        """Note that the run was stopped, unless it has ended."""
        if self.outcome.state == "running":
            self.outcome.seconds = (time.time() - self.outcome.began) / self.outcome.together
            self.outcome.state, self.outcome.reason = "stopped", reason


def _train(run: Callable[[Config], RunResult], run_stack: RunStack, runs: Sequence[_Noted]) -> None:
    """Train one run, or several together; a run whose directory another process writes comes last, by itself."""
    if len(runs) > 1:
        busy: list[_Noted] = []

        def ended(place: int, result: RunResult | Exception) -> None:
            busy.append(runs[place]) if isinstance(result, BusyError) else runs[place].end(result)

        run_stack([noted.config for noted in runs], ended)
        runs = busy
    for noted in runs:
        try:
            noted.end(_run_when_free(run, noted.config, noted.directory))
        except Interrupted:
            raise
        except Exception as error:
            noted.end(error)


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
        with (
            open(os.devnull, "w", encoding="utf-8") as nobody,
            contextlib.redirect_stdout(nobody),
            contextlib.redirect_stderr(errors),
        ):
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
