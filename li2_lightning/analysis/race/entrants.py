"""The entrants of a race: an optimizer each, with its grid, its best setting, and the nodes that the setting trains."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from li2_lightning.config import CONFIGS
from li2_lightning.config.identity import role_value
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, differing_settings
from li2_lightning.theory.features import feature_shares

LEVEL = 0.99
GRID = ("lr", "weight_decay")
ROLES = ("hidden", "output", "embedding")
# Sections that may differ between the runs of a race: where runs are kept, how they are watched, and the optimizers.
FREE = ("name", "callbacks", "trainer", "optimizer")


@dataclass(frozen=True)
class Setting:
    """One point of an entrant's grid, with a run for each seed."""

    values: dict[str, float]
    runs: list[Run]

    @cached_property
    def steps(self) -> list[float]:
        """First step with test accuracy .99 of each seed, sorted; ∞ for a seed that never reached it."""
        first = (run.first_step("test/accuracy", LEVEL) for run in self.runs)
        return sorted(math.inf if step is None else float(step) for step in first)

    @property
    def reached(self) -> int:
        """Number of seeds that reached test accuracy .99."""
        return sum(math.isfinite(step) for step in self.steps)

    @property
    def median(self) -> float:
        """Median of `steps`; ∞ if half of the seeds or more never reached test accuracy .99."""
        return statistics.median(self.steps)


@dataclass(frozen=True)
class Entrant:
    """An optimizer with its grid."""

    label: str
    settings: list[Setting]

    @cached_property
    def best(self) -> Setting:
        """Most seeds at .99, then the smallest median, then the smallest sum of steps."""
        return min(self.settings, key=lambda s: (-s.reached, s.median, sum(filter(math.isfinite, s.steps))))

    @property
    def runs(self) -> list[Run]:
        """The runs of all settings."""
        return [run for setting in self.settings for run in setting.runs]

    def edges(self) -> dict[str, str]:
        """↑ or ↓ for each value of the best setting that is the largest or smallest in the grid."""
        found = {}
        for key, value in self.best.values.items():
            grid = {setting.values[key] for setting in self.settings}
            if len(grid) > 1 and value in (min(grid), max(grid)):
                found[key] = "↑" if value == max(grid) else "↓"
        return found


def entrants(runs: Sequence[Run]) -> list[Entrant]:
    """The ended runs by optimizer and setting; the fastest entrant first.

    Raises:
        InputError: runs differ in more than their optimizers and seeds, or none has ended.
    """
    ended = [run for run in runs if run.summary is not None]
    if not ended:
        raise InputError("None of the runs has ended, so there is nothing to compare.")
    others = [key for key in differing_settings(ended) if key.partition(".")[0] not in FREE]
    if others:
        raise InputError(f"A race is on one task: these runs differ in {', '.join(others)}; name fewer directories.")
    grids: dict[str, dict[str, Setting]] = {}
    for run in ended:
        values = {key: value for key, value in _grid_values(run).items() if value is not None}
        settings = grids.setdefault(_identity(run), {})
        settings.setdefault(json.dumps(values), Setting(values, [])).runs.append(run)
    labels = _labels([next(iter(settings.values())).runs[0] for settings in grids.values()])
    found = [Entrant(label, list(settings.values())) for label, settings in zip(labels, grids.values(), strict=True)]
    return sorted(found, key=lambda entrant: (-entrant.best.reached, entrant.best.median, entrant.label))


def node_statistics(run: Run) -> dict[str, float]:
    """``irreps a node``, ``diversity`` and ``pure`` of the last checkpoint, by the module's formulas.

    Diversity lies between 1 and the number of non-trivial irreps (a conjugate pair counts as one); without a pure node
    it is NaN. The result is empty if the run has no checkpoint, is not of a group, or has another network.
    """
    group, checkpoint = run.task.group, run.directory / "checkpoints" / "last.ckpt"
    if group is None or run["network.name"] != "two_layer" or not checkpoint.exists():
        return {}
    weights = run.weights()
    W = weights["W"].reshape(-1, group.order, weights["W"].shape[-1])
    W = (weights["E"] @ W if "E" in weights else W).flatten(0, 1)
    return share_statistics(feature_shares(W, group))


def share_statistics(shares: Tensor) -> dict[str, float]:
    """The numbers of `node_statistics` from the result of `feature_shares`, blocks × K."""
    K = shares.shape[1]
    pure = shares > 0.5
    counts = pure.sum(dim=1).double()
    q = counts[counts > 0] / counts.sum()
    return {
        "irreps a node": int(pure.any(dim=1).sum()) / K,
        "diversity": float((-(q * q.log()).sum()).exp()) if len(q) else math.nan,
        "pure": float(counts.sum()) / K,
    }


def describe_setting(values: Mapping[str, float], edges: Mapping[str, str]) -> str:
    """As "lr 0.003, λ 0.0006↑"; a value of V that differs from that of W follows after a slash."""
    parts = []
    for key, symbol in zip(GRID, ("lr", "λ"), strict=True):
        shown = [
            f"{values[role]:g}{edges.get(role, '')}" for role in (f"hidden.{key}", f"output.{key}") if role in values
        ]
        parts.append(f"{symbol} {' / '.join(dict.fromkeys(shown)) or 'none'}")
    return ", ".join(parts)


def _grid_values(run: Run) -> dict[str, float | None]:
    """Learning rate and weight decay of each role of the network; a role without its own value has the shared one."""
    optimizer = run["optimizer"]
    return {
        f"{role}.{key}": None if (value := role_value(optimizer, role, key)) is None else float(value)
        for role in _roles(run)
        for key in GRID
    }


def _roles(run: Run) -> tuple[str, ...]:
    has_embedding = run["network.trainable_embedding"] or run["network.name"] == "transformer"
    return ROLES if has_embedding else ROLES[:2]


def _identity(run: Run) -> str:
    """The optimizer section without learning rates and weight decays."""
    return _without_grid(run["optimizer"], _roles(run))


def _without_grid(optimizer: Mapping[str, Any], roles: Sequence[str]) -> str:
    return json.dumps({r: {k: v for k, v in optimizer[r].items() if k not in GRID} for r in roles}, sort_keys=True)


@cache
def _presets(roles: Sequence[str]) -> dict[str, str]:
    """The name of each preset of configs/optimizer by its identity; an identity that two presets share has none."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIGS.glob("optimizer/*.yaml")):
        section: Any = OmegaConf.to_container(OmegaConf.load(path))
        found.setdefault(_without_grid(section, roles), []).append(path.stem)
    return {identity: names[0] for identity, names in found.items() if len(names) == 1}


def _labels(runs: Sequence[Run]) -> list[str]:
    """A label for the entrant of each run: the name of its preset, else its optimizers.

    Optimizers of one name are told apart by the hyperparameters that they set.
    """
    presets = [_presets(_roles(run)).get(_identity(run)) for run in runs]
    names = [preset or _name(run) for preset, run in zip(presets, runs, strict=True)]
    labels = []
    for run, preset, name in zip(runs, presets, names, strict=True):
        if preset is not None:
            labels.append(preset)
            continue
        namesakes = [other for other, its in zip(runs, names, strict=True) if its == name]
        roles = tuple(f"optimizer.{role}." for role in _roles(run))
        keys = [k for k in differing_settings(namesakes) if k.startswith(roles) and k.rpartition(".")[2] not in GRID]
        given = {key: value for key in keys if (value := run.settings.get(key)) is not None}
        more = ", ".join(f"{key.removeprefix('optimizer.')}={value}" for key, value in given.items())
        labels.append(f"{name} {more}".strip())
    return labels


def _name(run: Run) -> str:
    hidden, output = (_role_name(run["optimizer"][role]) for role in ("hidden", "output"))
    return hidden if output == hidden else f"{hidden} / {output}"


def _role_name(section: Mapping[str, Any]) -> str:
    inner = section.get("inner")
    chain = [inner] if isinstance(inner, str) else list(inner or ())
    return "(".join([str(section["name"]), *chain]) + ")" * len(chain)
