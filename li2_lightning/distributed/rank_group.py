"""The ranks of one run: the first rank's decision, its way to the other ranks, and the report of a failed rank.

The first rank decides whether the run is refused, finished before, or continued, and from which checkpoint. It alone
writes, logs and prints. The other ranks wait for its decision, which travels through the store of the process group.

Without a cluster manager the first process of a node starts the other ranks of the node, once the run is known to train
(`li2_lightning.distributed.launcher`). Under torchrun and SLURM all ranks run from the start; Lightning's cluster
environments find them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed

from li2_lightning.config.schema import Config, to_plain
from li2_lightning.distributed import collectives, launcher
from li2_lightning.distributed.machine import check_room, search_path, usable_cores
from li2_lightning.errors import InputError, Li2Error, OtherRankError


class RankGroup:
    """The ranks of one run, from the view of one of them. In a run of a single process every method does nothing.

    ::

        with RankGroup(config, command, join, plugin_modules) as ranks:
            if ranks.is_first:
                with ranks.training_from(checkpoint): ...
                ranks.finish(result)
            else:
                to_do, checkpoint = ranks.decision()
                result = ranks.result()

    Args:
        config: ``trainer.devices`` × ``trainer.num_nodes`` is the number of ranks.
        command: starts this program again, which then calls `launcher.run_as_follower`.
        join: makes the default process group; the environment gives the rank of this process in it.
        plugin_modules: keys of the config that name plug-ins, with the modules that register or define these plug-ins.
            The other ranks import the modules first.

    Raises:
        InputError: torchrun or SLURM started another number of processes, there are more ranks than cores or GPUs, or
            a plug-in exists in this process alone.
        OtherRankError: another rank failed. The first rank ends with the exit code of the rank that failed first.
    """

    # How many runs have used the default process group of this process.
    runs = 0

    def __init__(
        self,
        config: Config,
        command: Sequence[str],
        join: Callable[[Config, ClusterEnvironment], None],
        plugin_modules: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.size = config.trainer.devices * config.trainer.num_nodes
        self.environment = _find_environment(config)
        self.rank = 0 if self.environment is None else _global_rank(self.environment, config)
        self._config, self._command, self._join, self._plugin_modules = config, command, join, plugin_modules
        self._followers: launcher.Followers | None = None
        self._store: Any = None
        self._stack = contextlib.ExitStack()
        try:
            self._check()
        except InputError as error:
            if self.is_first:
                raise
            raise OtherRankError(str(error), error.exit_code, silent=True) from error

    @property
    def is_first(self) -> bool:
        """Whether this process decides, writes, logs and prints."""
        return self.rank == 0

    def __enter__(self) -> RankGroup:
        if self.environment is not None and (self._started_outside or self._config.trainer.num_nodes > 1):
            try:
                self._start_and_join(self.environment)
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if error is not None and self.environment is not None:
                self._report(error)
        finally:
            self._leave(error is None)

    @property
    def processes_here(self) -> int:
        """How many ranks of this run share the cores that this process may use."""
        # A cluster's queue gives each rank cores of its own.
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
        """On the first rank: let every rank train, from ``checkpoint`` or from the initial weights."""
        if self.environment is not None:
            if self._store is None:
                self._start_and_join(self.environment)
            self._write("decision", {"checkpoint": None if checkpoint is None else str(checkpoint.resolve())})
        yield

    def finish(self, result: dict[str, Any]) -> None:
        """On the first rank, once all is written: give the other ranks the result of the run, so that they end."""
        if self._store is None:
            return
        self._write("decision", {"finished": True})
        self._write("result", result)
        # The store may live in this process, so it waits for the readers. A rank that is too late is lost, not the run.
        with contextlib.suppress(RuntimeError):
            read = [self._key(f"read by {rank}") for rank in range(1, self.size)]
            self._store.wait(read, timedelta(seconds=launcher.PATIENCE))

    @contextlib.contextmanager
    def in_silence(self) -> Iterator[None]:
        """On another rank: discard the output, since the first rank prints."""
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield

    def decision(self) -> tuple[bool, Path | None]:
        """On another rank: wait for the decision; returns whether to train, and from which checkpoint."""
        decision = self._read("decision")
        checkpoint = decision.get("checkpoint")
        return "finished" not in decision, None if checkpoint is None else Path(checkpoint)

    def result(self) -> dict[str, Any]:
        """On another rank: wait for the result that the first rank passes to `finish`."""
        result = self._read("result")
        self._store.set(self._key(f"read by {self.rank}"), "")
        return result

    def _check(self) -> None:
        """Raise the errors that are known before a process is started or a file is written."""
        if self.processes_here > 1:
            check_room(self._config)
        if self.environment is None or self._started_outside:
            return
        for key, module in self._plugin_modules:
            without_file = module in sys.modules and getattr(sys.modules[module], "__file__", None) is None
            if module == "__main__" or without_file:
                raise InputError(
                    f"The plug-in of {key} exists in this session alone, and the other ranks of trainer.devices="
                    f"{self._config.trainer.devices} are processes of their own; put it into a file that can be "
                    f"imported, and name it as in {key}=my_module:MyClass."
                )

    # -- joining and leaving ----------------------------------------------------------------------------------------

    @property
    def _started_outside(self) -> bool:
        """Whether another program or another rank starts the processes of this node, this process included."""
        return self.environment is not None and self.environment.creates_processes_externally

    def _start_and_join(self, environment: ClusterEnvironment) -> None:
        """Start the other ranks of this node unless they were started outside, and join the process group."""
        devices, threads = self._config.trainer.devices, self._config.trainer.threads
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, usable_cores() // devices))
        if not self._started_outside and devices > 1:
            address = {
                "NODE_RANK": str(environment.node_rank()),
                "MASTER_ADDR": environment.main_address,
                "MASTER_PORT": str(environment.main_port),
                "PYTHONPATH": search_path(),
            }
            environments = [{**address, "LOCAL_RANK": str(local_rank)} for local_rank in range(1, devices)]
            imports = sorted({module for _, module in self._plugin_modules})
            self._followers = launcher.Followers(
                self._command, to_plain(self._config), environments, self.rank + 1, imports
            )
            self._followers.wait_until_ready()
        if launcher.is_follower():
            print(launcher.READY, flush=True)
        if not distributed.is_initialized():
            RankGroup.runs = 0
        # Lightning leaves the address of this process group in the environment.
        with launcher.restoring_environment():
            self._join(self._config, environment)
        RankGroup.runs += 1
        self._store = distributed.distributed_c10d._get_default_store()
        self._stack.enter_context(collectives.joined())

    def _leave(self, success: bool) -> None:
        """Leave the process group, and end the processes that this process has started."""
        if self._followers is not None:
            self._followers.end(success)
        # Processes that were started outside may make several runs with one group, unless a failure broke the group.
        if self._store is not None and (not success or not self._started_outside):
            self._store = None
            distributed.destroy_process_group()
        self._stack.close()

    # -- failures ---------------------------------------------------------------------------------------------------

    def _report(self, error: BaseException) -> None:
        """Report ``error`` to the other ranks. Where another rank's failure caused it, raise that failure instead."""
        origin = self._failure_elsewhere(error)
        if not self.is_first:
            code = getattr(error, "exit_code", launcher.LOST_CONNECTION if _is_lost_connection(error) else 1)
            raise OtherRankError(_sentence(error), code, silent=True) from error
        # An error that every rank raises alike (a signal, divergence) is the first rank's own.
        if origin is not None and not hasattr(error, "exit_code") and isinstance(error, Exception):
            raise origin from error

    def _failure_elsewhere(self, error: BaseException) -> OtherRankError | None:
        """The failure of another rank that came before ``error``; without one, note ``error`` for the other ranks."""
        if self._store is None:
            return None
        lost = _is_lost_connection(error)
        try:
            if not lost:
                note = {"rank": self.rank, "code": getattr(error, "exit_code", 1), "sentence": _sentence(error)}
                self._store.compare_set(self._key("failure"), "", json.dumps(note))
            failure = self._noted_failure()
        except RuntimeError:
            # The process that held the store has ended.
            return None
        if failure is None and lost:
            killed = None if self._followers is None else self._followers.failure(seconds=1.0)
            return killed or OtherRankError(f"Another rank was lost: {error}.", 1)
        return failure

    def _noted_failure(self) -> OtherRankError | None:
        """The failure that another rank has noted."""
        if not self._store.check([self._key("failure")]):
            return None
        note = json.loads(self._store.get(self._key("failure")))
        if note["rank"] == self.rank:
            return None
        return OtherRankError(f"Rank {note['rank']} failed: {note['sentence']}", note["code"])

    # -- the store --------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"li2_lightning/{RankGroup.runs}/{name}"

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._store.set(self._key(name), json.dumps(value))

    def _read(self, name: str) -> dict[str, Any]:
        """Wait for the value that the first rank writes under ``name``; raises the failure of another rank instead."""
        # During the store's own wait, Python would handle no signals.
        while not self._store.check([self._key(name)]):
            if (failure := self._noted_failure()) is not None:
                raise failure
            time.sleep(0.02)
        value = json.loads(self._store.get(self._key(name)))
        assert isinstance(value, dict)
        return value


def _find_environment(config: Config) -> ClusterEnvironment | None:
    """Lightning's cluster environment, which knows the rank of this process; None for a run of a single process."""
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
        # The strategy sets the global rank of this environment later.
        return environment.node_rank() * config.trainer.devices + environment.local_rank()
    return environment.global_rank()


def _is_lost_connection(error: BaseException) -> bool:
    """Whether the connection to another rank was lost, for which Gloo has no class of error."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _sentence(error: BaseException) -> str:
    if isinstance(error, Li2Error):
        return str(error)
    return f"Internal error: {type(error).__name__}: {error}"
