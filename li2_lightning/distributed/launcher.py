"""The processes of one run: how they start, what the first tells the others, and how they end together.

The first rank decides: whether the run is refused, finished before, or continued, and from which checkpoint. It alone
writes, logs and prints. The others follow its orders, which travel through the store that every process group has.

Without a cluster manager the first process of a node starts the others, once it is sure that there is something to
do: the same program again, with the config on its standard input, so that neither Hydra nor the command line is read
twice. Under torchrun and SLURM all are there from the start, as Lightning's cluster environments find them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed

from li2_lightning.config.schema import Config, to_plain
from li2_lightning.distributed import collectives as ranks
from li2_lightning.errors import InputError, Li2Error, OtherRankError
from li2_lightning.trainer import build_trainer, check_room, quiet_lightning, search_path, usable_cores

# Set for the processes that `Team` starts.
FOLLOWER = "LI2_LIGHTNING_FOLLOWER"
READY = b"ready\n"
# Seconds until a process that has lost another one, or should have ended, is ended from outside.
PATIENCE = 20.0


class Team:
    """The ranks of one run, one of them this process; of a single process it does nothing at all.

    ::

        with Team(config, command, plug_ins) as team:
            if team.first:
                with team.training_from(checkpoint): ...
                team.finish(result)
            else:
                to_do, checkpoint = team.orders()
                result = team.result()

    Args:
        config: ``trainer.devices`` × ``trainer.num_nodes`` is the number of ranks.
        command: what starts this program again; it calls `serve`.
        plug_ins: keys of the config that name plug-ins, and the modules where these were registered or are defined.
            The other ranks import them first.

    Raises:
        InputError: torchrun or SLURM started another number of processes, there are more ranks than cores or GPUs, or
            a plug-in exists in this process alone.
        OtherRankError: another rank failed. All ranks end with the exit code of the one that failed first.
    """

    runs = 0

    def __init__(self, config: Config, command: Sequence[str], plug_ins: Sequence[tuple[str, str]]) -> None:
        self.size = config.trainer.devices * config.trainer.num_nodes
        self._config, self._command, self._plug_ins = config, command, plug_ins
        self._children: list[subprocess.Popen[bytes]] = []
        self._stderr: list[IO[bytes]] = []
        self._store: Any = None
        self._stack = contextlib.ExitStack()
        self._over = threading.Event()
        self.environment = _find_environment(config)
        self.rank = 0 if self.environment is None else _global_rank(self.environment, config)
        try:
            self._check()
        except InputError as error:
            if self.first:
                raise
            raise OtherRankError(str(error), error.exit_code, silent=True) from error

    @property
    def first(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def __enter__(self) -> Team:
        if self.environment is not None and (self._has_others or self._config.trainer.num_nodes > 1):
            try:
                self._gather()
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.environment is None:
            return
        try:
            if error is not None:
                self._explain(error)
        finally:
            self._disband(error is None)

    @property
    def processes_here(self) -> int:
        """How many ranks of this run share the cores that this process may use."""
        # A queue gives each rank cores of its own.
        shares = isinstance(self.environment, LightningEnvironment | TorchElasticEnvironment)
        return self._config.trainer.devices if shares else 1

    def __str__(self) -> str:
        return "" if self.environment is None else f", {self.size} ranks"

    def check_rows(self, training_rows: int) -> None:
        """`InputError` where a rank would have no row to train on."""
        if self.size > training_rows:
            raise InputError(
                f"trainer.devices={self._config.trainer.devices} with trainer.num_nodes="
                f"{self._config.trainer.num_nodes} is more than there are training rows, {training_rows}; lower them."
            )

    @contextlib.contextmanager
    def training_from(self, checkpoint: Path | None) -> Iterator[None]:
        """The first: have every rank start, from ``checkpoint`` or from the initial weights."""
        if self.environment is not None:
            if self._store is None:
                self._gather()
            self._tell("orders", {"checkpoint": None if checkpoint is None else str(checkpoint.resolve())})
        yield

    def finish(self, result: dict[str, Any]) -> None:
        """The first: all is written; the others may read what came out."""
        if self._store is not None:
            self._tell("orders", {"finished": True})
            self._tell("result", result)
            # The store may live in this process; who has not read it by then is lost, and this run is not.
            self._wait(lambda: bool(self._store.add(self._key("read"), 0) >= self.size - 1), PATIENCE)

    @contextlib.contextmanager
    def in_silence(self) -> Iterator[None]:
        """Another rank: say nothing; the first does."""
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield

    def orders(self) -> tuple[bool, Path | None]:
        """Another rank: wait for the first; whether there is something to do, and from which checkpoint."""
        orders = self._hear("orders")
        checkpoint = orders.get("checkpoint")
        return "finished" not in orders, None if checkpoint is None else Path(checkpoint)

    def result(self) -> dict[str, Any]:
        """Another rank: what the first gave to `finish`."""
        result = self._hear("result")
        self._store.add(self._key("read"), 1)
        return result

    def _check(self) -> None:
        """What can be refused before anything is started or written."""
        if self.processes_here > 1:
            check_room(self._config)
        if self.environment is None or self._has_others:
            return
        for key, module in self._plug_ins:
            without_file = module in sys.modules and getattr(sys.modules[module], "__file__", None) is None
            if module == "__main__" or without_file:
                raise InputError(
                    f"The plug-in of {key} exists in this session alone, and the other ranks of trainer.devices="
                    f"{self._config.trainer.devices} are processes of their own; put it into a file that can be "
                    f"imported, and name it as in {key}=my_module:MyClass."
                )

    # -- meeting ----------------------------------------------------------------------------------------------------

    @property
    def _has_others(self) -> bool:
        """Whether somebody else starts the processes of this node, or has started this one."""
        assert self.environment is not None
        return self.environment.creates_processes_externally

    def _gather(self) -> None:
        """Start who is missing on this node, and meet the others."""
        assert self.environment is not None
        environment, trainer = self.environment, self._config.trainer
        if self._config.trainer.threads is None and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, usable_cores() // trainer.devices))
        if not self._has_others:
            self._start_children()
        if FOLLOWER in os.environ:
            _say_ready()
        before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
        # Lightning knows which device and backend a rank has, and how its environment tells the address.
        meeting = build_trainer(self._config, Path(), [], environment)
        if not distributed.is_initialized():
            Team.runs = 0
        with quiet_lightning():
            meeting.strategy.setup_environment()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        Team.runs += 1
        self._store = distributed.distributed_c10d._get_default_store()
        self._stack.enter_context(ranks.joined())

    def _start_children(self) -> None:
        assert self.environment is not None
        order = json.dumps(
            {"config": to_plain(self._config), "import": sorted({module for _, module in self._plug_ins})}
        )
        for local_rank in range(1, self._config.trainer.devices):
            environment = {
                **os.environ,
                FOLLOWER: "1",
                "LOCAL_RANK": str(local_rank),
                "NODE_RANK": str(self.environment.node_rank()),
                "MASTER_ADDR": self.environment.main_address,
                "MASTER_PORT": str(self.environment.main_port),
                "PYTHONPATH": search_path(),
            }
            stderr = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (open until the end)
            self._stderr.append(stderr)
            # A session of its own: Ctrl-C in the terminal is for the first, which stops all at the same step. That its
            # standard input ends tells a follower that the first is gone, however it went.
            child = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
            self._children.append(child)
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(f"{order}\n".encode())
                child.stdin.flush()
        for child in self._children:
            # Only who has got this far is waited for without end.
            assert child.stdout is not None
            if child.stdout.readline() != READY:
                raise self._lost(child)
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def _watch(self) -> None:
        """End this process if a child is lost and the main thread hangs in a reduction with it."""
        while not self._over.wait(0.5):
            for child in self._children:
                if child.poll() and not self._over.wait(PATIENCE):
                    self._kill()
                    error = self._failure() or self._lost(child)
                    print(f"error: {error}", file=sys.stderr, flush=True)
                    os._exit(error.exit_code)

    # -- parting ----------------------------------------------------------------------------------------------------

    def _explain(self, error: BaseException) -> None:
        """Tell the other ranks what failed here; raise what failed elsewhere, if that is why."""
        origin = self._report(error)
        if not self.first:
            raise OtherRankError(_sentence(error), getattr(error, "exit_code", 1), silent=True) from error
        # What every rank raises alike (a signal, divergence) the first says as if it were alone.
        if origin is not None and not hasattr(error, "exit_code") and isinstance(error, Exception):
            raise origin from error

    def _report(self, error: BaseException) -> OtherRankError | None:
        """Note the failure, unless another rank was first: then what that one noted."""
        if self._store is None:
            return None
        mine = {"rank": self.rank, "code": getattr(error, "exit_code", 1), "sentence": _sentence(error)}
        try:
            self._store.compare_set(self._key("failure"), "", json.dumps(mine))
            if self.first:
                # Who still waits for orders learns it there.
                self._tell("orders", {"failed": True})
                self._tell("result", {"failed": True})
        except RuntimeError:
            # The store is gone, and with it whoever held it.
            return None
        if (failure := self._failure()) is not None:
            return failure
        # Gloo has no class for it: the other end of a connection is gone.
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            time.sleep(0.5)
            lost = [child for child in self._children if child.poll()]
            return self._lost(lost[0]) if lost else OtherRankError(f"Another rank was lost: {error}.", 1)
        return None

    def _failure(self) -> OtherRankError | None:
        """What another rank noted."""
        if self._store is None or not self._store.check([self._key("failure")]):
            return None
        failure = json.loads(self._store.get(self._key("failure")))
        if failure["rank"] == self.rank:
            return None
        return OtherRankError(f"Rank {failure['rank']} failed: {failure['sentence']}", failure["code"])

    def _lost(self, child: subprocess.Popen[bytes]) -> OtherRankError:
        """A child ended and told nobody why."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE)
        place = self._children.index(child)
        self._stderr[place].seek(0)
        lines = self._stderr[place].read().decode(errors="replace").strip().splitlines()
        code = child.returncode
        how = (
            f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        )
        last = f": {lines[-1]}" if lines else "."
        return OtherRankError(f"Rank {self.rank + place + 1} {how}{last}", 1)

    def _disband(self, well: bool) -> None:
        """Part from the others; those that this process started are gone afterwards."""
        self._over.set()
        if well:
            for child in self._children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(PATIENCE)
        self._kill()
        # A group that somebody else made for several runs stays for the next one, unless it is broken.
        if self._store is not None and (not well or not self._has_others):
            self._store = None
            distributed.destroy_process_group()
        self._stack.close()

    def _kill(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    # -- talking ----------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        # A process group may see several runs, one after the other.
        return f"li2_lightning/{Team.runs}/{name}"

    def _tell(self, name: str, value: dict[str, Any]) -> None:
        self._store.set(self._key(name), json.dumps(value))

    def _hear(self, name: str) -> dict[str, Any]:
        self._wait(lambda: bool(self._store.check([self._key(name)])))
        value = json.loads(self._store.get(self._key(name)))
        assert isinstance(value, dict)
        if "failed" in value:
            raise self._failure() or OtherRankError("Another rank failed.", 1)
        return value

    def _wait(self, happened: Callable[[], bool], seconds: float = math.inf) -> None:
        pause, deadline = 0.001, time.monotonic() + seconds
        while not happened() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)


def invited() -> bool:
    """Whether this process was started by a `Team`."""
    return FOLLOWER in os.environ


def serve(run: Callable[[dict[str, Any]], object]) -> int:
    """What a process that a `Team` started does: ``run`` the config from standard input; returns the exit code.

    The modules of plug-ins are imported first, so that their names are known.
    """
    global _announce
    order = json.loads(sys.stdin.buffer.readline())
    _announce = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    threading.Thread(target=_end_with_the_first, name="first rank", daemon=True).start()
    try:
        for module in order["import"]:
            importlib.import_module(module)
        run(order["config"])
    except BaseException as error:
        # Where the first can find it.
        traceback.print_exc()
        return int(getattr(error, "exit_code", 1))
    return 0


_announce: IO[bytes] | None = None


def _say_ready() -> None:
    assert _announce is not None
    _announce.write(READY)
    _announce.flush()


def _end_with_the_first() -> None:
    # Below Python's buffers: one that a thread waits in cannot be closed when the process ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _find_environment(config: Config) -> ClusterEnvironment | None:
    """Who says which rank this process is, as Lightning looks for it; None for a single process."""
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    started = int(os.environ["WORLD_SIZE"]) if TorchElasticEnvironment.detect() else None
    if devices * nodes == 1:
        if started is not None and started > 1:
            raise InputError(
                f"torchrun started {started} processes for a run on one device; set trainer.devices={started}."
            )
        return None
    environment: ClusterEnvironment = LightningEnvironment()
    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
        if kind.detect():
            environment = kind()
            break
    try:
        environment.validate_settings(devices, nodes)
    except ValueError as error:
        raise InputError(f"{str(error).rstrip('.')}.") from error
    if nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_PORT" not in os.environ:
        raise InputError(
            f"trainer.num_nodes={nodes} needs torchrun, SLURM, or MASTER_ADDR, MASTER_PORT and NODE_RANK in the "
            "environment of every node."
        )
    return environment


def _global_rank(environment: ClusterEnvironment, config: Config) -> int:
    if isinstance(environment, LightningEnvironment):
        # It learns its rank from the strategy, later.
        return environment.node_rank() * config.trainer.devices + environment.local_rank()
    return environment.global_rank()


def _sentence(error: BaseException) -> str:
    if isinstance(error, Li2Error):
        return str(error)
    return f"Internal error: {type(error).__name__}: {error}"
