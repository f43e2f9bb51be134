"""The leader of a sweep: the process that has the runs started, shows their progress, and ends them together.

No run is trained twice, and a run that fails stops no other run. The runs are in this process or in many. The processes
communicate through files in a folder that exists as long as the sweep (`li2_lightning.sweeps.worker`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from li2_lightning.files import is_locked, lock, write_json
from li2_lightning.log import say
from li2_lightning.runs.directory import unwritable
from li2_lightning.sweeps import stacking, worker
from li2_lightning.sweeps.plan import Job, Launching, Outcome, key
from li2_lightning.sweeps.worker import LEADER, POLL_S

# How long a sweep that is stopped waits for its runs to save their state.
GRACE_S = 120.0
FOLDER = ".sweep"


def new_folder(output_dir: str) -> Path:
    """A folder for the processes of one sweep, which does not exist yet."""
    return Path(output_dir).absolute() / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


class Sweep:
    """The context in which the runs of a sweep are launched.

    Args:
        jobs: the result of `plan`.
        folder: the folder for the processes' files; made at the beginning of the context, removed at its end.
        launching: how the launcher starts runs.

    Raises:
        SystemExit: at the end of the context, code 1 where runs have failed.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, launching: Launching) -> None:
        self.jobs = list(jobs)
        self.folder = folder
        self.launching = launching
        self._left_out = sum(job.ended for job in jobs)
        self._stacks = stacking.stacks([job for job in jobs if not job.ended], launching.parallel)
        self._launched: list[Job] = []
        self._alone, self._in_stacks = False, set[int]()
        self._signal: int | None = None
        self._shown = threading.Event()
        self._refreshing = threading.Lock()

    def __enter__(self) -> Sweep:
        try:
            self.folder.mkdir(parents=True)
            self._lead = lock(self.folder / LEADER)
            write_json(self.folder / "settings.json", self._settings())
        except OSError as error:
            raise unwritable(str(self.folder.parent.parent), error) from error
        worker.leading = self
        self._handlers = {caught: signal.signal(caught, self._stop) for caught in (signal.SIGINT, signal.SIGTERM)}
        print(self._opening(), flush=True)
        self._run_id = os.environ.pop("WANDB_RUN_ID", None)
        if self._run_id is not None:
            say("WANDB_RUN_ID is left out in a sweep: each of its runs is a W&B run of its own.")
        # Started before SIGINT is blocked for the workers, so that this thread can still receive it.
        self._display = threading.Thread(target=self._show, name="sweep progress", daemon=True)
        self._display.start()
        if not self.launching.in_this_process:
            # joblib's workers use Python's tracker of semaphores, whose start unblocks SIGINT in the starting thread.
            resource_tracker.ensure_running()
            # The terminal sends Ctrl-C to every process. Workers inherit the mask, so this process alone stops them.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return self

    def launch(self, start: Callable[[list[list[str]]], Any], at_once: int | None = None) -> None:
        """Start every run that has not ended, ``at_once`` at a time, and wait for them.

        Args:
            start: takes the overrides of some runs and returns when these have ended; raises where a process died.
            at_once: None for all runs.
        """
        while waiting := [job for job in self.jobs if not job.ended]:
            # A pool of workers ends as a whole when one worker dies; a run that is retried alone shows the cause.
            fresh = ([job for job in stack if not (job.ended or job.retry_alone)] for stack in self._stacks)
            launched = [stack for stack in fresh if stack][:at_once] or [waiting[:1]]
            self._launched = [job for stack in launched for job in stack]
            self._alone = len(self._launched) == 1
            self._in_stacks = {id(job) for stack in launched if len(stack) > 1 for job in stack}
            for stack in launched:
                worker.write_stack(self.folder, stack)
            reason = "its process ended without an outcome"
            try:
                start([stack[0].overrides for stack in launched])
            except Exception as error:
                # The launcher's error is about a process that died; the error of a run is in its outcome.
                first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
                reason = f"its process died: {first_line.rstrip('.:')}"
            self._settle(reason)

    def announce(self, job_directories: Sequence[Path]) -> None:
        """Print the runs that start now in this process, one or those of a stack."""
        labels = [job.label for job in self.jobs if job.directory in job_directories]
        status, first = self.status(), self._count("done", "failed") + 1
        if len(labels) > 1:
            which = f"Runs {first}–{first + len(labels) - 1} of {len(self.jobs)}: {labels[0]} … {labels[-1]}"
        else:
            which = f"Run {first} of {len(self.jobs)}: {labels[0] if labels else job_directories[0]}"
        print(f"{which} ({status})", flush=True)

    def status(self) -> str:
        """The progress of the sweep in fewer than 80 columns."""
        self._refresh()
        done, failed, running = (self._count(state) for state in ("done", "failed", "running"))
        return f"{done} of {len(self.jobs)} done, {failed} failed, {running} running{self._left()}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        worker.leading = None
        self._shown.set()
        self._display.join()
        if not self.launching.in_this_process:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for caught, handler in self._handlers.items():
            signal.signal(caught, handler)
        if self._run_id is not None:
            os.environ["WANDB_RUN_ID"] = self._run_id
        status = self.status()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
        self._lead.lock.release()
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
        """Ask every run to save its state and to end; returns the exception to raise once all runs have ended."""
        self._signal = signum
        (self.folder / LEADER).write_text("stop", encoding="utf-8")
        return SystemExit(128 + signum)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        again = self._signal is not None
        ending = self.stop(signum)
        if not again and not self.launching.in_this_process:
            deadline = time.monotonic() + GRACE_S
            while self._still_running(starting=not self.launching.reuses_workers) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        # Not an Exception: Hydra would take it for the failure of one run.
        raise ending

    def _still_running(self, starting: bool = False) -> bool:
        """Whether a process trains one of the launched runs.

        Args:
            starting: count the runs, too, that have written no outcome yet.
        """
        self._refresh()
        return any(
            (job.outcome.state == "running" and is_locked(self._path(job, "lock")))
            or (starting and self.launching.on_this_machine and job.outcome.state == "waiting")
            for job in self._launched
        )

    def _settle(self, reason: str) -> None:
        """Wait for launched runs that outlived their launcher; ``reason`` is the outcome of runs whose process died."""
        deadline = time.monotonic() + (0 if self.launching.reuses_workers else GRACE_S)
        while self._still_running() or (self._still_running(starting=True) and time.monotonic() < deadline):
            time.sleep(POLL_S)
        began = [job for job in self._launched if job.outcome.state != "waiting"]
        for job in self._launched:
            kept_alive = self.launching.reuses_workers or id(job) in self._in_stacks
            if job.outcome.state == "stopped":
                # Another program stopped the run; where this sweep stops its runs, it raises.
                job.outcome.state = "failed"
            elif not job.ended and (self._alone or not began or not kept_alive):
                job.outcome = Outcome("failed", reason=f"{reason}; the same command tries it again.")
            elif not job.ended:
                job.retry_alone = job in began
                job.outcome = Outcome()
                self._path(job, "json").unlink(missing_ok=True)

    def _refresh(self) -> None:
        with self._refreshing:
            for job in self.jobs:
                if not job.ended:
                    # The run may not have begun.
                    with contextlib.suppress(OSError):
                        job.outcome = Outcome(**json.loads(self._path(job, "json").read_text(encoding="utf-8")))

    def _path(self, job: Job, suffix: str) -> Path:
        return self.folder / f"{key(job.directory)}.{suffix}"

    def _count(self, *states: str) -> int:
        return sum(job.outcome.state in states for job in self.jobs)

    def _left(self) -> str:
        """The expected time left, from the mean time of the runs that this sweep has ended; empty before the first."""
        times = [job.outcome.seconds for job in self.jobs if job.ended and job.outcome.seconds > 0]
        running = [job.outcome for job in self.jobs if job.outcome.state == "running"]
        waiting = len(self.jobs) - self._count("done", "failed") - len(running)
        if not times or not (running or waiting):
            return ""
        each = sum(times) / len(times)
        now = time.time()
        left = waiting * each
        for outcome in running:
            left += max(0.0, each - (now - outcome.began) / outcome.together)
        seconds = int(left / (self.launching.parallel or max(1, len(running))))
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return f", {clock} left"

    def _opening(self) -> str:
        parallel, threads = self.launching.parallel, self.launching.threads
        how = ""
        if not self.launching.in_this_process:
            how = f", {parallel} at a time" if parallel is not None else ", as the queue takes them"
            how += f", {threads} thread{'s' * (threads > 1)} each" if threads is not None else ""
        ended = {state: self._count(state) for state in ("done", "failed")}
        failed = f", {ended['failed']} failed or refused" if ended["failed"] else ""
        runs = f"{len(self.jobs)} run{'s' * (len(self.jobs) != 1)}"
        to_go = f"{len(self.jobs) - self._left_out} to go{how}"
        opening = f"Sweep: {runs}, {ended['done']} finished already{failed}, {to_go}."
        stacks = stacking.describe(self._stacks)
        return f"{opening}\n{stacks[:1].upper()}{stacks[1:]}." if stacks else opening

    def _settings(self) -> dict[str, Any]:
        """The settings of every run. The W&B group is the same whenever the same sweep is started again."""
        names = sorted({job.directory.parent.name for job in self.jobs if job.directory.parent != Path()})
        digest = hashlib.sha256("\n".join(sorted(str(job.directory) for job in self.jobs)).encode()).hexdigest()
        name = names[0] if len(names) == 1 else "sweep"
        return {
            "group": f"{name}-{digest[:6]}",
            "on_this_machine": self.launching.on_this_machine,
            "threads": self.launching.threads,
        }

    def _show(self) -> None:
        """Show the progress of runs in other processes, and each line that a run wrote to stderr."""
        if self.launching.in_this_process:
            return
        console = Console()
        progress = Progress(BarColumn(bar_width=14), TextColumn("{task.description}"), console=console)
        task, live = TaskID(0), console.is_terminal
        if live:
            task = progress.add_task(self.status(), total=len(self.jobs))
            progress.start()
        shown: set[str] = set()
        spacing = max(1, len(self.jobs) // 20)
        next_line = self._count("done", "failed") + spacing
        over = False
        while not over:
            over = self._shown.wait(POLL_S)
            status, ended = self.status(), self._count("done", "failed")
            for line in (line for job in self.jobs for line in job.outcome.stderr if line not in shown):
                shown.add(line)
                (progress.console.print(line, markup=False, highlight=False) if live else say(line))
            if live:
                progress.update(task, completed=ended, description=status)
            elif ended >= next_line and ended < len(self.jobs):
                print(f"Sweep: {status}.", flush=True)
                next_line = ended + spacing
        if live:
            progress.stop()
