"""Reading finished and unfinished runs, for notebooks, tables and figures.

run = li2_lightning.load_run("outputs/latest")
run["optimizer.lr"], run.metrics["test/accuracy"], run.stages, run.weights()["W"], run.network()(tokens).outputs
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from li2_lightning.config.checks import load_config
from li2_lightning.config.identity import NOT_HASHED, is_within
from li2_lightning.config.schema import Config, keys, to_plain
from li2_lightning.errors import InputError, message, unknown
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.networks.base import Network
from li2_lightning.networks.build import restore_network
from li2_lightning.runs.checkpoints import network_weights, read_checkpoint
from li2_lightning.runs.directory import RunDirectory
from li2_lightning.runs.metrics_csv import first_step, read_metrics
from li2_lightning.tasks.splits import Split, build_split
from li2_lightning.tasks.tasks import Task, build_task

# Settings of the place of a run, of its measurements and of its display, and a second seed: they do not distinguish
# experiments.
_HOUSEKEEPING = (*(key for key in NOT_HASHED if key != "name"), "data.seed")
# Settings that a label needs only where no other setting distinguishes the runs.
_SECONDARY = ("name", "max_steps", "stop_at_test_accuracy", "trainer", "callbacks")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, finished or not.

    Attributes:
        directory: ``outputs/<name>/<config-hash>-s<seed>``.
        config: config.yaml as nested plain containers.
        summary: summary.json; None for a run that has not ended.
        stages: stages.json; None without the file, which the callback ``stages`` writes.
    """

    directory: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    stages: dict[str, Any] | None

    @property
    def status(self) -> str:
        """``"finished"``, ``"diverged"``, or ``"unfinished"`` while it trains or after it was stopped."""
        return "unfinished" if self.summary is None else str(self.summary["status"])

    @property
    def finished(self) -> bool:
        """Whether the run reached its end; a diverged run did not."""
        return self.status == "finished"

    @property
    def seeds(self) -> str:
        """The seed as text: "3", or "3 (data 5)" where the split and the mini-batches have a seed of their own."""
        seed, own = int(self.config["seed"]), self.config["data"].get("seed")
        return str(seed) if own in (None, seed) else f"{seed} (data {own})"

    @functools.cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv, one row a step: the index is the step, an empty cell is NaN.

        Before the first row it has no columns; the file then may have its header already.
        """
        path = self.directory / "metrics.csv"
        no_rows = pd.DataFrame(index=pd.Index([], name="step", dtype="int64"))
        try:
            rows = read_metrics(path).set_index("step")
            return rows if len(rows) else no_rows
        except (FileNotFoundError, pd.errors.EmptyDataError):
            return no_rows
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}).") from error

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Every value of the config by its dotted key."""
        return _flatten(self.config)

    @functools.cached_property
    def task(self) -> Task:
        """The task, built from the config.

        Raises:
            InputError: the file of its Cayley table is missing.
        """
        return _task(json.dumps(self.config["task"], sort_keys=True))

    @property
    def group(self) -> FiniteGroup:
        """The group of a task that is known to have one."""
        assert self.task.group is not None
        return self.task.group

    @functools.cached_property
    def split(self) -> Split:
        """The rows of the task that the run was trained and tested on.

        Raises:
            InputError: as for `task`, or the split file is missing.
        """
        return build_split(self.task, self.config["data"], int(self.config["seed"]))

    @property
    def train_fraction(self) -> float:
        """n/N, the fraction of the rows that the run was trained on; errors as for `split`."""
        return len(self.split.train) / len(self.task.labels)

    @property
    def entered(self) -> dict[int, int]:
        """Stage (2, 3) → the step at which it was declared; empty without `stages`."""
        return {event["to"]: event["step"] for event in self.stages["events"]} if self.stages else {}

    def last(self, column: str) -> float:
        """The value of ``column`` in the last row; NaN without the column or without a row."""
        return float(self.metrics[column].iloc[-1]) if column in self.metrics and len(self.metrics) else math.nan

    def first_step(self, column: str, level: float) -> int | None:
        """The first step at which ``column`` was at least ``level``; None if it never was."""
        return first_step(self.metrics, column, level) if column in self.metrics else None

    def checkpoint(self, name: str | int = "last") -> Path:
        """The file of a checkpoint, for ``Li2Module.load_from_checkpoint``.

        Args:
            name: a file of ``checkpoints/`` without its suffix ("last", "best", "stage-3"), or the number of a row.

        Raises:
            InputError: the run has kept no such checkpoint.
        """
        name = f"row-{name:06d}" if isinstance(name, int) else name
        folder = self.directory / "checkpoints"
        kept = [file.stem for file in folder.glob("*.ckpt")]
        if name not in kept:
            if not kept:
                raise InputError(f"{self.directory} has kept no checkpoint.")
            raise unknown(f"checkpoint of {self.directory}:", name, kept)
        return folder / f"{name}.ckpt"

    def weights(self, checkpoint: str | int = "last") -> dict[str, Tensor]:
        """The network's parameters by name (W, V, …), inputs × outputs, at the eval point.

        Args:
            checkpoint: as for `checkpoint`.

        Raises:
            InputError: the checkpoint does not exist or cannot be loaded.
        """
        path = self.checkpoint(checkpoint)
        return network_weights(read_checkpoint(path, str(path)))

    def network(self, checkpoint: str | int = "last") -> Network:
        """The trained network, at the eval point: ``network(tokens)`` gives outputs and features of rows.

        With batch norm, give `Network.forward` the moments of the training rows, or take
        ``Li2Module.load_from_checkpoint(run.checkpoint())``, which has them.

        Args:
            checkpoint: as for `checkpoint`.

        Raises:
            InputError: as for `weights` and `task`, or the config names a plug-in that is unknown here.
        """
        config, path = load_config(self.config), self.checkpoint(checkpoint)
        return restore_network(config, self.task, self.weights(checkpoint), str(path))

    def __getitem__(self, key: str) -> Any:
        """The value or section of the config at a dotted key; an unknown key is an `InputError`."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise unknown(f"key of {self.directory}:", key, self.settings)
            value = value[part]
        return value


def load_run(directory: str | Path) -> Run:
    """The run in a run directory.

    Raises:
        InputError: ``directory`` is no run directory, or one of its files is damaged.
    """
    directory = Path(directory)
    config = _read_config(directory)
    if config is None:
        inside = next(_run_directories(directory), None) if directory.is_dir() else None
        hint = f"; runs lie below it, for example {inside[0]}" if inside else ""
        raise InputError(f"{directory} is no run directory, it has no config.yaml of ours{hint}.")
    return _load(directory, config)


def find_runs(directories: Iterable[str | Path]) -> list[Run]:
    """Every run in or below the directories, each once, also unfinished runs; in the given order, then by path.

    Raises:
        InputError: a directory does not exist or has no runs, or a file of a run is damaged.
    """
    found: dict[Path, Run] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise InputError(f"{directory} is no directory; give a run or a folder that holds runs.")
        configs = dict(_run_directories(directory))
        if not configs:
            raise InputError(f"{directory} holds no runs; give a run directory or a folder above some.")
        for path, config in configs.items():
            if path.resolve() not in found:
                found[path.resolve()] = _load(path, config)
    return list(found.values())


def differing_settings(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[str]:
    """The dotted keys whose values are not the same in all runs, without seeds and the places of the runs.

    The name, the length and the measurements come last.

    Args:
        ignore: further keys and sections to leave out.
    """
    runs = list(_by_hash(runs).values())
    out = {*_HOUSEKEEPING, *ignore}
    keys = {key: None for run in runs for key in run.settings if not is_within(key, out)}
    differing = [key for key in keys if len({_hashable(run.settings.get(key)) for run in runs}) > 1]
    return sorted(differing, key=lambda key: key.partition(".")[0] in _SECONDARY)


def grouped(runs: Iterable[Run], key: Callable[[Run], Key]) -> dict[Key, list[Run]]:
    """The runs of each value of ``key``, values and runs in the order in which they come."""
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def groups_of_seeds(runs: Sequence[Run], keys: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Groups of runs that differ only in their seeds, by a label with the settings that distinguish the groups.

    The label leaves out the name, the length and the measurements where the other settings distinguish the groups.
    The label of a single group is "".

    Args:
        keys: the settings that distinguish the groups; None for all that differ.
    """
    keys = differing_settings(runs) if keys is None else list(keys)
    groups: dict[tuple[str, ...], list[Run]] = {}
    firsts = _by_hash(runs)
    for run in runs:
        settings = firsts[_without_seed(run)].settings
        groups.setdefault(tuple(_hashable(settings.get(key)) for key in keys), []).append(run)
    for key in [key for key in reversed(keys) if key.partition(".")[0] in _SECONDARY]:
        fewer = [other for other in keys if other != key]
        if len({tuple(_hashable(run.settings.get(other)) for other in fewer) for run in runs}) == len(groups):
            keys = fewer
    ordered = sorted(groups.values(), key=lambda group: [_order(group[0].settings.get(key)) for key in keys])
    labels = [describe(group[0], keys) for group in ordered]
    if len(set(labels)) < len(labels):
        # Two tasks of one name, such as a group with two operands and with three.
        labels = [", ".join(f"{key}={show(group[0].settings.get(key))}" for key in keys) for group in ordered]
    return dict(zip(labels, ordered, strict=True))


def describe(run: Run, keys: Sequence[str]) -> str:
    """The values of some settings as text, such as "Z23, lr=0.005, hidden=muon"; the task appears by its name.

    A setting that is null says nothing beside others, so it is shown only where all of them are null.
    """
    parts = [task_name(run)] if any(key.startswith("task.") for key in keys) else []
    others = [key for key in keys if not key.startswith("task.")]
    given = [key for key in others if run.settings.get(key) is not None]
    parts += [f"{_short(key)}={show(run.settings.get(key))}" for key in given or (others if not parts else [])]
    return ", ".join(parts)


def task_name(run: Run) -> str:
    """The name of the task; the values of the ``task`` section where the task can no longer be built."""
    try:
        return run.task.name
    except InputError:
        return " ".join(str(value) for value in run.config["task"].values() if value is not None)


def _by_hash(runs: Iterable[Run]) -> dict[Hashable, Run]:
    """The first run of each config, by `_without_seed`.

    Configs of one hash are equal, although one may write a value that another leaves at its default.
    """
    firsts: dict[Hashable, Run] = {}
    for run in runs:
        firsts.setdefault(_without_seed(run), run)
    return firsts


def _without_seed(run: Run) -> Hashable:
    """The name and the path up to the config hash; the run itself where its directory has another kind of name."""
    of_ours = re.fullmatch(r"([0-9a-f]{10})-s\d+", run.directory.name)
    return (run.config.get("name"), run.directory.with_name(of_ours[1])) if of_ours else run


def _run_directories(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The run directories in or below a directory, sorted, with their configs; not in a run, nor behind a link."""
    for folder, below, files in os.walk(directory):
        below.sort(key=_natural)
        config = _read_config(Path(folder)) if "config.yaml" in files else None
        if config is not None:
            below.clear()
            yield Path(folder), config


def _load(directory: Path, config: dict[str, Any]) -> Run:
    stages = directory / "stages.json"
    try:
        events = json.loads(stages.read_text(encoding="utf-8")) if stages.exists() else None
        if events is not None and not {"events", "stalled"} <= set(events):
            raise ValueError("it holds no stages")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{stages} cannot be read ({error}); remove it to do without its stages.") from error
    return Run(directory, config, RunDirectory(directory).summary(), events)


def _read_config(directory: Path) -> dict[str, Any] | None:
    """config.yaml; None where it is missing or not of this project (W&B has files of that name).

    Raises:
        InputError: the file is damaged, and the directory has rows of a run.
    """
    path = directory / "config.yaml"
    try:
        loaded = OmegaConf.load(path)
        config = OmegaConf.to_container(loaded) if isinstance(loaded, DictConfig) else {}
        if not config:
            raise ValueError("it holds no settings")
    # The parser raises many kinds of errors over a file that is no YAML.
    except Exception as error:
        if path.exists() and (directory / "metrics.csv").exists():
            why = message(error)
            raise InputError(f"{path} cannot be read: {why}; remove the directory, or train the run again.") from error
        return None
    assert isinstance(config, dict)
    sections = ("task", "data", "network", "optimizer")
    ours = isinstance(config.get("max_steps"), int) and "seed" in config
    if not ours or not all(isinstance(config.get(section), dict) for section in sections):
        return None
    try:
        return _with_defaults({str(key): value for key, value in config.items()})
    except (TypeError, AttributeError):  # a section that is none
        return None


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the defaults of keys that it lacks: a run of an earlier version had what they say."""
    default = to_plain(Config())
    for key in keys():
        *sections, name = key.split(".")
        own, given = (functools.reduce(getitem, sections, whole) for whole in (config, default))
        own.setdefault(name, given[name])
    return config


@functools.lru_cache(maxsize=256)
def _task(section: str) -> Task:
    return build_task(json.loads(section))


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _hashable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order(value: Any) -> tuple[int, float, str]:
    """Sorts None first, then numbers by size, then words."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def _natural(name: str) -> tuple[str, int, str]:
    """Sorts seed 10 after seed 9."""
    head, _, seed = name.rpartition("-s")
    return (head, int(seed), "") if seed.isdecimal() else (name, -1, "")


def _short(key: str) -> str:
    key = key.removesuffix(".name") if key.count(".") > 1 or key == "scheduler.name" else key
    return key.partition(".")[2] or key


def show(value: Any) -> str:
    """A short text of a setting that differs for different values; null as in YAML."""
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
