"""The runs of a sweep, with their labels and outcomes.

A run is identified by its directory. Finished runs are left out and unfinished runs continue, so the same command
continues a sweep that was stopped in any way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import DictConfig

from li2_lightning.config.schema import Config
from li2_lightning.distributed.machine import usable_cores
from li2_lightning.errors import DivergenceError, InputError
from li2_lightning.runs.directory import RunDirectory


@dataclass(frozen=True)
class Launching:
    """How a launcher starts runs.

    Args:
        parallel: the number of runs at a time; None where a queue decides.
        in_this_process: runs follow each other in the process that leads the sweep.
        on_this_machine: runs are on the leader's machine, where a lock shows whether a process lives.
        reuses_workers: a worker takes one run after another; otherwise each run has a process of its own.
    """

    parallel: int | None = 1
    in_this_process: bool = True
    on_this_machine: bool = True
    reuses_workers: bool = True

    @property
    def threads(self) -> int | None:
        """The threads of torch in each process, so that the processes share the cores; None leaves it to torch.

        The number does not depend on how many runs are left: a run must continue with the threads that it began with.
        """
        if self.in_this_process or self.parallel is None:
            return None
        return max(1, min(torch.get_num_threads(), usable_cores()) // self.parallel)


@dataclass
class Outcome:
    """The state of a run in a sweep: the contents of KEY.json in the folder of the sweep."""

    state: str = "waiting"  # running, done, failed, stopped
    began: float = 0.0  # seconds since the epoch
    seconds: float = 0.0
    reason: str | None = None
    trace: str | None = None
    stderr: list[str] = field(default_factory=list)  # lines that the run wrote to stderr
    together: int = 1  # number of runs in its stack; ``seconds`` is this run's share of their time


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        overrides: the overrides that the sweep adds for this run.
        label: its overrides, without those that all runs of the sweep have.
        config: None where the run is refused.
        retry_alone: a worker died while several runs were training, so each of them is tried again by itself.
    """

    overrides: list[str]
    label: str
    directory: Path
    config: Config | None = None
    outcome: Outcome = field(default_factory=Outcome)
    retry_alone: bool = False

    @property
    def ended(self) -> bool:
        return self.outcome.state in ("done", "failed")


def key(directory: Path) -> str:
    """The name of a run in the folder of its sweep."""
    return hashlib.sha256(str(directory).encode()).hexdigest()[:16]


def plan(
    overrides: Sequence[Sequence[str]],
    compose: Callable[[list[str]], DictConfig],
    read: Callable[[DictConfig], Config],
) -> list[Job]:
    """The runs that ``overrides`` ask for; finished and refused runs have their outcome already.

    Args:
        overrides: for each run the overrides that the sweep adds.
        compose: makes the values of a run from its overrides.
        read: makes the config of a run from its values, as the run itself does.

    Raises:
        InputError: a run asks for several devices, or all runs are refused for one reason.
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
            job = Job(list(own), label, directory.path, config, _stored(directory, config))
        except InputError as error:
            refused.append(str(error))
            job = Job(list(own), label, Path(f"refused-{len(refused)}"), None, Outcome("failed", reason=str(error)))
        jobs.setdefault(job.directory, job)
    if len(refused) == len(overrides) and len(set(refused)) == 1:
        raise InputError(refused[0])
    return list(jobs.values())


def _refuse_several_devices(values: DictConfig) -> None:
    for name in ("devices", "num_nodes"):
        wanted = values.get("trainer", {}).get(name, 1)
        if isinstance(wanted, int) and wanted > 1:
            raise InputError(
                f"A sweep gives each run one device, and trainer.{name}={wanted} asks for more: a launcher counts "
                "one process and its cores for each run; start such runs one by one without -m, or leave it at 1."
            )


def _stored(directory: RunDirectory, config: Config) -> Outcome:
    """The outcome of a run that ended before this sweep; the state "waiting" for any other run."""
    try:
        return Outcome("waiting" if directory.stored(config) is None else "done")
    except DivergenceError as error:
        return Outcome("failed", reason=str(error))


def _labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """For each run the overrides that not all runs have."""
    shared = set.intersection(*(set(own) for own in overrides)) if len(overrides) > 1 else set()
    labels = (" ".join(item.lstrip("+") for item in own if item not in shared) for own in overrides)
    return [label or "the only one" for label in labels]
