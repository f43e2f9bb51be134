"""Which runs a sweep has, what they are called, and what became of each.

The runs are known by their directories: a finished run is left out, an unfinished one continues, so that a sweep that
was stopped in any way goes on when the same command is typed again.
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
        parallel: how many run at a time; None where a queue decides.
        in_this_process: one after the other in the process that leads the sweep.
        on_this_machine: so that a lock tells whether their process lives.
        reuses_workers: a worker takes one run after another, instead of a process a run.
    """

    parallel: int | None = 1
    in_this_process: bool = True
    on_this_machine: bool = True
    reuses_workers: bool = True

    @property
    def threads(self) -> int | None:
        """Torch's threads for each of the processes, so that they do not fight over cores; None leaves it to torch.

        It does not depend on how many runs are left: a run that continues must get the threads that it began with.
        """
        if self.in_this_process or self.parallel is None:
            return None
        return max(1, min(torch.get_num_threads(), usable_cores()) // self.parallel)


@dataclass
class Outcome:
    """What became of a run so far, as KEY.json in the folder of the sweep holds it."""

    state: str = "waiting"  # running, done, failed, stopped
    began: float = 0.0  # seconds since the epoch
    seconds: float = 0.0
    reason: str | None = None
    trace: str | None = None
    said: list[str] = field(default_factory=list)  # lines that the run wrote to stderr


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        overrides: what the sweep sets for it.
        label: the overrides that not all runs have.
        retry_alone: a worker process died while it trained this run among others, so any of them may be to blame.
    """

    overrides: list[str]
    label: str
    directory: Path
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


def _refuse_several_devices(values: DictConfig) -> None:
    for name in ("devices", "num_nodes"):
        wanted = values.get("trainer", {}).get(name, 1)
        if isinstance(wanted, int) and wanted > 1:
            raise InputError(
                f"A sweep gives each run one device, and trainer.{name}={wanted} asks for more: launchers count "
                "one process a run, and their cores by it; start such runs one by one without -m, or leave it at 1."
            )


def _stored(directory: RunDirectory, config: Config) -> Outcome:
    """The outcome of a run that ended before this sweep; otherwise that it waits."""
    try:
        return Outcome("waiting" if directory.stored(config) is None else "done")
    except DivergenceError as error:
        return Outcome("failed", reason=str(error))


def _labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """What tells the runs apart: of each run the overrides that not all of them have."""
    shared = set.intersection(*(set(own) for own in overrides)) if len(overrides) > 1 else set()
    told = [" ".join(item.lstrip("+") for item in own if item not in shared) for own in overrides]
    return [label or "the only one" for label in told]
