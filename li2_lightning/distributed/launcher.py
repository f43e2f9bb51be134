"""The other ranks of a node: torch's elastic launcher, the one under torchrun, starts, watches and ends them.

They are the same program again, with the config in a file, so that neither Hydra nor the command line is read twice.
torchrun itself would start the first rank, too, before anything is decided, and its processes outlive a launcher that
is killed.
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

# Names, for a process that `Followers` starts, the file with its order.
FOLLOWER = "LI2_LIGHTNING_FOLLOWER"
# A follower prints it when it is about to join the process group.
READY = "ready to join"
# Exit code of a rank that ends because it has lost the connection to another one (EX_TEMPFAIL of sysexits.h).
LOST_CONNECTION = 75
# Exit codes of what every rank raises alike, at the same step; the first rank may still be saving then.
RAISED_ALIKE = (DivergenceError.exit_code, 128 + signal.SIGINT, 128 + signal.SIGTERM)
# Seconds until a process that has lost another one, or should have ended, is ended from outside.
PATIENCE = 20.0


class Followers:
    """The processes of all ranks of this node but this one, which is the parent.

    Each has a session of its own: Ctrl-C in the terminal reaches the parent alone, which stops all at the same step.

    Args:
        command: starts this program again; it calls `run_as_follower`.
        config: what the processes run, as plain containers.
        environments: for each process the variables that tell its rank and the address of the first rank.
        first_rank: the rank of the first of these processes.
        imports: modules that register plug-ins, which each process imports before it runs.
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
        # What the launcher has to say, the error of this module says in one sentence.
        logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
        with restoring_environment():
            # The launcher's handlers of signals would take the place of ours.
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
        """Return when every process is about to join the process group, which waits for each without end.

        Raises:
            OtherRankError: a process ended before.
        """
        while not all(READY in Path(path).read_text() for path in self._processes.stdouts.values()):
            if self._processes.wait(0) is not None:
                raise self.failure() or OtherRankError("The other ranks ended before they joined this one.", 1)
            time.sleep(0.05)
        self._watcher.start()

    def failure(self, seconds: float = 0.0) -> OtherRankError | None:
        """The end of the rank that failed first, if that is known within ``seconds``; the other ones are ended then."""
        with self._polling:
            result = self._processes.wait(seconds, period=0.05)
        if result is None:
            return None
        failures = [failure for failure in result.failures.values() if failure.exitcode not in RAISED_ALIKE]
        if not failures:
            return None
        # In the order in which they were found; a rank that merely lost the connection was not the first to fail.
        first = min(failures, key=lambda failure: failure.exitcode == LOST_CONNECTION)
        code, said = first.exitcode, Path(result.stderrs[first.local_rank]).read_text(errors="replace").strip()
        how = f"was ended by {first.signal_name()}" if code < 0 else f"ended with code {code}"
        last = f": {said.splitlines()[-1]}" if said else "."
        return OtherRankError(f"Rank {self._first_rank + first.local_rank} {how}{last}", 1)

    def end(self, well: bool) -> None:
        """Wait until the processes have ended where all went ``well``; kill those that have not."""
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if well:
            self._processes.wait(PATIENCE, period=0.05)
        self._processes.close(signal.SIGKILL)
        with warnings.catch_warnings():
            # The launcher never closes the log files of a process that ended by itself.
            warnings.simplefilter("ignore", ResourceWarning)
            del self._processes
        self._folder.cleanup()

    def _watch(self) -> None:
        """End this process if a follower is lost and the main thread hangs in a reduction with it."""
        while not self._over.wait(0.5):
            if (failure := self.failure()) is not None and not self._over.wait(PATIENCE):
                print(f"error: {failure}", file=sys.stderr, flush=True)
                self._folder.cleanup()
                os._exit(failure.exit_code)


def is_follower() -> bool:
    """Whether this process was started by `Followers`."""
    return FOLLOWER in os.environ


def run_as_follower(run: Callable[[dict[str, Any]], object]) -> int:
    """What a follower does: import the plug-ins of its order and ``run`` the config; returns the exit code."""
    path = Path(os.environ[FOLLOWER])
    order = json.loads(path.read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(order["parent"], path.parent), name="parent", daemon=True).start()
    try:
        for module in order["import"]:
            importlib.import_module(module)
        run(order["config"])
        return 0
    except BaseException as error:
        # The last line is what `Followers.failure` quotes.
        traceback.print_exc()
        return int(getattr(error, "exit_code", 1))
    finally:
        _clear_away(order["parent"], path.parent)


def _end_with(parent: int, folder: Path) -> None:
    """End this process when its parent is gone, however that went."""
    while not _clear_away(parent, folder):
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _clear_away(parent: int, folder: Path) -> bool:
    """Whether the parent is gone; it cannot remove the folder of its processes then."""
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
