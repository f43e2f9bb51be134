"""Starting the other ranks of a node with torch's elastic launcher, on which torchrun is built, too.

Each rank runs the same program again with the config in a file, so Hydra reads the command line only once.
torchrun itself would also start the first rank before anything is decided, and its processes would outlive a killed
launcher.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes

from li2_lightning.errors import DivergenceError, OtherRankError

# The environment variable of a follower (a process that `Followers` starts) that holds the path of its order.
FOLLOWER = "LI2_LIGHTNING_FOLLOWER"
# The line that a follower prints when it is about to join the process group.
READY = "ready to join"
# Exit code of a rank that lost the connection to another rank (EX_TEMPFAIL of sysexits.h).
LOST_CONNECTION = 75
# Exit codes of the errors that every rank raises at the same step; the first rank may still be saving then.
RAISED_ALIKE = (DivergenceError.exit_code, 128 + signal.SIGINT, 128 + signal.SIGTERM)
# Seconds until a process that has lost another rank, or should have ended, is killed.
PATIENCE = 20.0


class Followers:
    """The processes of the other ranks of this node; this process is their parent.

    Each follower has a session of its own, so Ctrl-C reaches the parent alone. The parent stops all ranks at one step.

    Args:
        command: starts this program again, which then calls `run_as_follower`.
        config: the config of the run in plain containers.
        environments: for each process the variables that hold its rank and the address of the first rank.
        first_rank: the rank of the first of these processes.
        imports: modules that register plug-ins; each process imports them before it runs.
    """

    def __init__(
        self,
        command: Sequence[str],
        config: Mapping[str, Any],
        environments: Sequence[Mapping[str, str]],
        first_rank: int,
        imports: Sequence[str] = (),
    ) -> None:
        self._first_rank = first_rank
        self._folder = tempfile.TemporaryDirectory(prefix="li2-ranks-")
        order = Path(self._folder.name) / "order.json"
        order.write_text(
            json.dumps({"config": config, "import": list(imports), "parent": os.getpid()}), encoding="utf-8"
        )
        # `failure` reports in one sentence what the launcher would log.
        logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
        with restoring_environment():
            # Without this, the launcher's signal handlers would replace ours.
            os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""
            self._processes = start_processes(
                name="rank",
                entrypoint=command[0],
                args=dict.fromkeys(range(len(environments)), tuple(command[1:])),
                envs={place: {**own, FOLLOWER: str(order)} for place, own in enumerate(environments)},
                logs_specs=DefaultLogsSpecs(self._folder.name, redirects=Std.ALL),
            )
        self._polling = threading.Lock()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def wait_until_ready(self) -> None:
        """Return when every process is about to join the process group. (Joining waits for all ranks without a limit.)

        Raises:
            OtherRankError: a process ended before that.
        """
        while not all(READY in Path(path).read_text(errors="replace") for path in self._processes.stdouts.values()):
            if self._processes.wait(0) is not None:
                raise self.failure() or OtherRankError("The other ranks ended before they joined this one.", 1)
            time.sleep(0.05)
        self._watcher.start()

    def failure(self, seconds: float = 0.0) -> OtherRankError | None:
        """The error of the rank that failed first; the launcher ends the others then. None within ``seconds``."""
        with self._polling:
            result = self._processes.wait(seconds, period=0.05)
        if result is None:
            return None
        failures = [failure for failure in result.failures.values() if failure.exitcode not in RAISED_ALIKE]
        if not failures:
            return None
        # The launcher lists failures as it finds them. A rank that lost the connection was not the first to fail.
        first = min(failures, key=lambda failure: failure.exitcode == LOST_CONNECTION)
        code, stderr = first.exitcode, Path(result.stderrs[first.local_rank]).read_text(errors="replace").strip()
        how = f"was ended by {first.signal_name()}" if code < 0 else f"ended with code {code}"
        last = f": {stderr.splitlines()[-1]}" if stderr else "."
        return OtherRankError(f"Rank {self._first_rank + first.local_rank} {how}{last}", 1)

    def end(self, success: bool) -> None:
        """After a ``success``, wait for the processes to end; kill every process that is left."""
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if success:
            self._processes.wait(PATIENCE, period=0.05)
        self._processes.close(signal.SIGKILL)
        with warnings.catch_warnings():
            # The launcher never closes the log files of a process that ended by itself.
            warnings.simplefilter("ignore", ResourceWarning)
            del self._processes
        self._folder.cleanup()

    def _watch(self) -> None:
        """End this process if a follower has failed and the main thread hangs in a reduction with it."""
        while not self._over.wait(0.5):
            if (failure := self.failure()) is not None and not self._over.wait(PATIENCE):
                print(f"error: {failure}", file=sys.stderr, flush=True)
                self._folder.cleanup()
                os._exit(failure.exit_code)


def is_follower() -> bool:
    """Whether this process was started by `Followers`."""
    return FOLLOWER in os.environ


def run_as_follower(run: Callable[[dict[str, Any]], object]) -> int:
    """In a follower: import the plug-ins of its order and ``run`` the config; returns the exit code."""
    path = Path(os.environ[FOLLOWER])
    order = json.loads(path.read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(order["parent"], path.parent), name="parent", daemon=True).start()
    try:
        for module in order["import"]:
            importlib.import_module(module)
        run(order["config"])
        return 0
    except BaseException as error:
        # `Followers.failure` quotes the last line.
        traceback.print_exc()
        return int(getattr(error, "exit_code", 1))
    finally:
        _clear_away(order["parent"], path.parent)


def _end_with(parent: int, folder: Path) -> None:
    """End this process when its parent has ended for any reason."""
    while not _clear_away(parent, folder):
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _clear_away(parent: int, folder: Path) -> bool:
    """Whether the parent has ended; if so, remove the folder that the parent would have removed."""
    gone = os.getppid() != parent
    if gone:
        shutil.rmtree(folder, ignore_errors=True)
    return gone


@contextlib.contextmanager
def restoring_environment() -> Iterator[None]:
    """Put the environment variables back as they were before the block."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before
