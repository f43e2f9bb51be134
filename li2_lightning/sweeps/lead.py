"""A sweep: many runs, in this process or in many, of which none is trained twice.

The runs are known by their directories: a finished one is left out, an unfinished one continues, so that a sweep that
was stopped in any way goes on when the same command is typed again. One that fails stops none of the others.

What the processes tell each other lies in a folder beside the runs, since files reach every kind of process: this one,
workers on this machine, jobs of a cluster with a shared file system. It exists as long as the sweep runs:

    settings.json   what holds for all runs
    alive           locked by the process that leads the sweep
    stop            asks every run to save its state and to end
    KEY.json        what became of one run, replaced as it goes on
    KEY.lock        locked by the process that trains it
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from li2_lightning.cli.hydra_errors import one_sentence
from li2_lightning.config.schema import Config
from li2_lightning.errors import BusyError, DivergenceError, InputError, Interrupted
from li2_lightning.files import is_locked, lock, write_json
from li2_lightning.log import say
from li2_lightning.runs.directory import RunDirectory, RunResult
from li2_lightning.runs.terminal import print_summary
from li2_lightning.trainer import usable_cores

POLL_S = 0.2
# How long a sweep that is stopped waits for its runs to save their state.
GRACE_S = 120.0
# How long a run waits for its directory: a worker of a sweep that was killed may still be saving.
DIRECTORY_S = 30.0
FOLDER = ".sweep"

# The sweep that this process leads; None in a worker.
_leading: Sweep | None = None


@dataclass(frozen=True)
class Launching:
    """How a launcher starts runs.

    Args:
        parallel: how many run at a time; None where somebody else decides (a queue).
        here: in this very process.
        local: on this machine, so that they end when this process dies.
        reusing: in workers that take one run after another, and not in a process a run.
    """

    parallel: int | None = 1
    here: bool = True
    local: bool = True
    reusing: bool = True

    @property
    def threads(self) -> int | None:
        """Torch's threads for each of the processes, so that they do not fight over cores; None leaves it to torch.

        It does not depend on how many runs are left: a run that continues must get the threads that it began with.
        """
        if self.here or self.parallel is None:
            return None
        return max(1, min(torch.get_num_threads(), usable_cores()) // self.parallel)


@dataclass
class Outcome:
    """What became of a run so far, as KEY.json holds it."""

    state: str = "waiting"  # running, done, failed, stopped
    began: float = 0.0  # seconds since the epoch
    seconds: float = 0.0
    reason: str | None = None
    trace: str | None = None
    said: list[str] = field(default_factory=list)


@dataclass
class Job:
    """One run of a sweep."""

    overrides: list[str]
    label: str
    directory: Path
    outcome: Outcome = field(default_factory=Outcome)
    suspect: bool = False  # its process died, or the pool that it was in

    @property
    def ended(self) -> bool:
        return self.outcome.state in ("done", "failed")


def plan(
    overrides: Sequence[Sequence[str]],
    compose: Callable[[list[str]], DictConfig],
    read: Callable[[DictConfig], Config],
) -> list[Job]:
    """The runs that ``overrides`` ask for, those that are finished or refused with their outcome.

    Args:
        overrides: for each run what the sweep sets.
        compose: makes the values of a run from them.
        read: makes its config from these, as the run itself does.

    Raises:
        InputError: a run asks for several devices, or all of them are refused for one and the same reason.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("A sweep is started once, not on every rank; start it without torchrun, one device a run.")
    jobs: dict[Path, Job] = {}
    refused = []
    for own, label in zip(overrides, _labels(overrides), strict=True):
        values = compose(list(own))
        _refuse_several_devices(values)
        try:
            config = read(values)
            directory = RunDirectory.of(config)
            job = Job(list(own), label, directory.path, _stored(directory, config))
        except InputError as error:
            refused.append(str(error))
            job = Job(list(own), label, Path(f"refused-{len(refused)}"), Outcome("failed", reason=str(error)))
        jobs.setdefault(job.directory, job)
    if len(refused) == len(overrides) and len(set(refused)) == 1:
        raise InputError(refused[0])
    return list(jobs.values())


class Sweep:
    """Leads the runs of a sweep; a context around their launch.

    Args:
        jobs: of `plan`.
        folder: where the processes talk to each other; made on entering, removed on leaving.
        launching: how runs are started.

    Leaving it raises SystemExit(1) where runs have failed.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, launching: Launching) -> None:
        self.jobs = list(jobs)
        self.folder = folder
        self.launching = launching
        self._left_out = sum(job.ended for job in jobs)
        self._launched: list[Job] = []
        self._signal: int | None = None
        self._shown = threading.Event()
        self._console = Console()
        self._lock = threading.Lock()

    def __enter__(self) -> Sweep:
        global _leading
        try:
            self.folder.mkdir(parents=True)
            self._alive = lock(self.folder / "alive")
            write_json(self.folder / "settings.json", self._settings())
        except OSError as error:
            raise InputError(
                f"output_dir={str(self.folder.parent.parent)!r} cannot be written: {error.strerror}."
            ) from error
        _leading = self
        self._handlers = {caught: signal.signal(caught, self._stop) for caught in (signal.SIGINT, signal.SIGTERM)}
        print(self._opening(), flush=True)
        self._run_id = os.environ.pop("WANDB_RUN_ID", None)
        if self._run_id is not None:
            say("WANDB_RUN_ID is left out in a sweep: each of its runs is a W&B run of its own.")
        # Started before SIGINT is blocked for the workers, so that one thread is left that it reaches.
        self._display = threading.Thread(target=self._show, name="sweep progress", daemon=True)
        self._display.start()
        if not self.launching.here:
            # Python's tracker of semaphores, which joblib's workers use, unblocks SIGINT in the thread that starts it.
            resource_tracker.ensure_running()
            # Ctrl-C goes to every process of the terminal; workers inherit the mask, and are stopped by us, once.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return self

    def launch(self, start: Callable[[list[list[str]]], Any], at_once: int | None = None) -> None:
        """Start every run that has not ended, ``at_once`` at a time, and wait for them.

        Args:
            start: takes the overrides of some runs and returns when they have ended. Where it raises, a process died.
        """
        while waiting := [job for job in self.jobs if not job.ended]:
            fresh = [job for job in waiting if not job.suspect]
            # A pool of workers ends as a whole when one of them dies; alone, it is clear whose run was to blame.
            self._launched = fresh[:at_once] or waiting[:1]
            reason = "its process ended without a word"
            try:
                start([job.overrides for job in self._launched])
            except Exception as error:
                # What the launcher says of a process that died; what a run says is in its outcome.
                told = (str(error).strip() or type(error).__name__).splitlines()[0]
                reason = f"its process died: {told.rstrip('.:')}"
            self._settle(reason)

    def tell(self, job_directory: Path) -> None:
        """Say which run starts now, where runs follow each other in this process."""
        label = next((job.label for job in self.jobs if job.directory == job_directory), str(job_directory))
        status = self.status()
        print(f"Run {self._count('done', 'failed') + 1} of {len(self.jobs)}: {label} ({status})", flush=True)

    def status(self) -> str:
        """How far the sweep is, on less than a line of 80 columns."""
        self._refresh()
        done, failed, running = (self._count(state) for state in ("done", "failed", "running"))
        return f"{done} of {len(self.jobs)} done, {failed} failed, {running} running{self._left()}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        global _leading
        _leading = None
        self._shown.set()
        self._display.join()
        if not self.launching.here:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for caught, handler in self._handlers.items():
            signal.signal(caught, handler)
        if self._run_id is not None:
            os.environ["WANDB_RUN_ID"] = self._run_id
        status = self.status()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
        self._alive.lock.release()
        if error is None or isinstance(error, SystemExit):
            print(f"Sweep: {status}.", flush=True)
            for job in self.jobs:
                if job.outcome.state == "failed":
                    say(f"{job.outcome.trace or ''}failed: {job.label}: {job.outcome.reason}")
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            say(f"error: {name} stopped the sweep; what ran is saved, and the same command continues it.")
        elif error is None and self._count("failed"):
            raise SystemExit(1)

    def stop(self, signum: int) -> SystemExit:
        """Ask every run to save its state and to end; what to raise once they have."""
        self._signal = signum
        (self.folder / "stop").touch()
        return SystemExit(128 + signum)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        again = self._signal is not None
        ending = self.stop(signum)
        if not again and not self.launching.here:
            deadline = time.monotonic() + GRACE_S
            while self._still_running(starting=not self.launching.reusing) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        # SystemExit and no Exception, which Hydra would take for the end of one run.
        raise ending

    def _still_running(self, starting: bool = False) -> bool:
        """Whether a process trains one of the launched runs.

        Args:
            starting: count those, too, of which nothing has been heard yet.
        """
        self._refresh()
        return any(
            (job.outcome.state == "running" and is_locked(self._path(job, "lock")))
            or (starting and self.launching.local and job.outcome.state == "waiting")
            for job in self._launched
        )

    def _settle(self, reason: str) -> None:
        """Wait for launched runs that outlived their launcher; name those whose process has died."""
        deadline = time.monotonic() + (0 if self.launching.reusing else GRACE_S)
        while self._still_running() or (self._still_running(starting=True) and time.monotonic() < deadline):
            time.sleep(POLL_S)
        began = [job for job in self._launched if job.outcome.state != "waiting"]
        alone = len(self._launched) == 1
        for job in self._launched:
            if job.outcome.state == "stopped":
                # By somebody else than this sweep, which would not have come here.
                job.outcome.state = "failed"
            elif not job.ended and (alone or not began or not self.launching.reusing):
                job.outcome = Outcome("failed", reason=f"{reason}; the same command tries it again.")
            elif not job.ended:
                job.suspect = job in began
                job.outcome = Outcome()
                self._path(job, "json").unlink(missing_ok=True)

    def _refresh(self) -> None:
        with self._lock:
            for job in self.jobs:
                if not job.ended:
                    # A file that is not there yet.
                    with contextlib.suppress(OSError):
                        job.outcome = Outcome(**json.loads(self._path(job, "json").read_text(encoding="utf-8")))

    def _path(self, job: Job, suffix: str) -> Path:
        return self.folder / f"{key(job.directory)}.{suffix}"

    def _count(self, *states: str) -> int:
        return sum(job.outcome.state in states for job in self.jobs)

    def _left(self) -> str:
        """The time that is left, from the runs that this sweep has seen the end of; empty before the first."""
        seen = [job.outcome.seconds for job in self.jobs if job.ended and job.outcome.seconds > 0]
        running = [job.outcome for job in self.jobs if job.outcome.state == "running"]
        waiting = len(self.jobs) - self._count("done", "failed") - len(running)
        if not seen or not (running or waiting):
            return ""
        each = sum(seen) / len(seen)
        now = time.time()
        left = waiting * each + sum(max(0.0, each - (now - outcome.began)) for outcome in running)
        seconds = int(left / (self.launching.parallel or max(1, len(running))))
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return f", {clock} left"

    def _opening(self) -> str:
        parallel, threads = self.launching.parallel, self.launching.threads
        how = ""
        if not self.launching.here:
            how = f", {parallel} at a time" if parallel is not None else ", as the queue takes them"
            how += f", {threads} thread{'s' * (threads > 1)} each" if threads is not None else ""
        ended = {state: self._count(state) for state in ("done", "failed")}
        failed = f", {ended['failed']} failed or refused" if ended["failed"] else ""
        runs = f"{len(self.jobs)} run{'s' * (len(self.jobs) != 1)}"
        return f"Sweep: {runs}, {ended['done']} finished already{failed}, {len(self.jobs) - self._left_out} to go{how}."

    def _settings(self) -> dict[str, Any]:
        """What holds for every run, and the W&B group: the same whenever the same sweep is started again."""
        names = sorted({job.directory.parent.name for job in self.jobs if job.directory.parent != Path()})
        digest = hashlib.sha256("\n".join(sorted(str(job.directory) for job in self.jobs)).encode()).hexdigest()
        name = names[0] if len(names) == 1 else "sweep"
        return {
            "group": f"{name}-{digest[:6]}",
            "local": self.launching.local and not self.launching.here,
            "threads": self.launching.threads,
        }

    def _show(self) -> None:
        """The line that tells of runs elsewhere, and each thing that they had to say."""
        if self.launching.here:
            return
        progress, task = (
            Progress(BarColumn(bar_width=14), TextColumn("{task.description}"), console=self._console),
            TaskID(0),
        )
        live = self._console.is_terminal
        if live:
            task = progress.add_task(self.status(), total=len(self.jobs))
            progress.start()
        said: set[str] = set()
        spacing = max(1, len(self.jobs) // 20)
        next_line = self._count("done", "failed") + spacing
        over = False
        while not over:
            over = self._shown.wait(POLL_S)
            status, ended = self.status(), self._count("done", "failed")
            for line in (line for job in self.jobs for line in job.outcome.said if line not in said):
                said.add(line)
                (progress.console.print(line, markup=False, highlight=False) if live else say(line))
            if live:
                progress.update(task, completed=ended, description=status)
            elif ended >= next_line and ended < len(self.jobs):
                print(f"Sweep: {status}.", flush=True)
                next_line = ended + spacing
        if live:
            progress.stop()


def run_in_sweep(run: Callable[[Config], RunResult], read: Callable[[], Config], folder: Path) -> None:
    """One run of the sweep that talks through ``folder``: its config read, trained, and its outcome noted.

    A sweep goes on where no finished run is, without being asked to (``resume=auto``).
    """
    if (folder / "stop").exists():
        return
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        orphaned = settings["local"] and not is_locked(folder / "alive")
    except FileNotFoundError:
        orphaned = True
    if orphaned:
        # Nobody leads the sweep any more, nor would collect this process, which may have other runs waiting for it.
        os._exit(128 + signal.SIGTERM)
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
    here = _leading
    with lock(mark):
        write_json(note, asdict(outcome))
        if here is not None:
            here.tell(directory)
        try:
            with contextlib.nullcontext() if here is not None else _worker(folder, settings, outcome):
                result = _run_when_free(run, config, directory)
                if here is not None:
                    print_summary(result.summary, result.directory)
            outcome.state = "done"
        except _Stopped:
            outcome.state, outcome.reason = "stopped", "Stopped before training began or after it ended."
        except Interrupted as error:
            outcome.state, outcome.reason = "stopped", str(error)
            if here is not None:
                raise here.stop(error.signum) from error
        except Exception as error:
            outcome.state, outcome.reason = "failed", one_sentence(error)
            outcome.trace = "".join(traceback.format_exception(error)) if config.debug else None
        finally:
            outcome.seconds = time.time() - outcome.began
            if folder.exists():
                write_json(note, asdict(outcome))


def key(directory: Path) -> str:
    """The name of a run in the folder of its sweep."""
    return hashlib.sha256(str(directory).encode()).hexdigest()[:16]


def _refuse_several_devices(values: DictConfig) -> None:
    for name in ("devices", "num_nodes"):
        wanted = values.get("trainer", {}).get(name, 1)
        if isinstance(wanted, int) and wanted > 1:
            raise InputError(
                f"A sweep gives each run one device, and trainer.{name}={wanted} asks for more: launchers count "
                "one process a run, and their cores by it; start such runs one by one without -m, or leave it at 1."
            )


def _stored(directory: RunDirectory, config: Config) -> Outcome:
    """The outcome of a run that ended before this sweep, or that it waits."""
    try:
        return Outcome("waiting" if directory.stored(config) is None else "done")
    except DivergenceError as error:
        return Outcome("failed", reason=str(error))


def _labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """What tells the runs apart: of each run the overrides that not all of them have."""
    shared = set.intersection(*(set(own) for own in overrides)) if len(overrides) > 1 else set()
    told = [" ".join(item.lstrip("+") for item in own if item not in shared) for own in overrides]
    return [label or "the only one" for label in told]


def _run_when_free(run: Callable[[Config], RunResult], config: Config, directory: Path) -> RunResult:
    deadline = time.monotonic() + DIRECTORY_S
    while True:
        while is_locked(directory / ".lock") and time.monotonic() < deadline:
            time.sleep(POLL_S)
        try:
            return run(config)
        except BusyError:
            # Somebody was faster.
            if time.monotonic() >= deadline:
                raise


# In a worker: whether the run at hand may be sent SIGTERM, and the folders that are watched.
_training = threading.Event()
_watched: set[Path] = set()


@contextlib.contextmanager
def _worker(folder: Path, settings: dict[str, Any], outcome: Outcome) -> Iterator[None]:
    """Around a run in a process of its own: its share of the cores, its words kept, and an end when the sweep ends."""
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    handlers = {caught: signal.signal(caught, _interrupt) for caught in (signal.SIGINT, signal.SIGTERM)}
    if folder not in _watched:
        _watched.add(folder)
        threading.Thread(target=_watch, args=(folder, settings["local"]), name="sweep watch", daemon=True).start()
    errors = io.StringIO()
    try:
        with open(os.devnull, "w") as nobody, contextlib.redirect_stdout(nobody), contextlib.redirect_stderr(errors):
            _training.set()
            yield
    finally:
        _training.clear()
        for caught, handler in handlers.items():
            signal.signal(caught, handler)
        outcome.said = [line for line in errors.getvalue().splitlines() if line.strip()]


class _Stopped(BaseException):
    """A worker was asked to end outside the fit: no Exception, for libraries turn any of these into one of theirs."""


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Outside the fit, which has a handler of its own."""
    raise _Stopped


def _watch(folder: Path, local: bool) -> None:
    """Stop the run of this worker when the sweep is stopped; end the worker when nobody leads the sweep any more."""
    told = False
    while True:
        orphaned = local and not is_locked(folder / "alive")
        if (orphaned or not folder.exists() or (folder / "stop").exists()) and _training.is_set() and not told:
            told = True
            os.kill(os.getpid(), signal.SIGTERM)
        if orphaned and not _training.is_set():
            os._exit(128 + signal.SIGTERM)
        if not local and not folder.exists():
            return
        time.sleep(POLL_S)
