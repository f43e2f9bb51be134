"""Optimizers compared on one task: the table of a race, from the runs of a grid for each.

    li2 race DIR… [-o race.md] [-o race.csv]

Each line is an *entrant*: an optimizer section without learning rates and weight decays, whose values are the entrant's
grid. The runs may differ in nothing else but the seed. The **best** setting of an entrant is the one with which most
seeds reached test accuracy .99; among equals, the one with the smallest median step. The minimum over a larger grid is
smaller by chance alone, so the table gives the number of settings.

| column | meaning |
|---|---|
| optimizer | optimizer of W (its inner optimizer in brackets); after a slash that of V, if it differs |
| steps to .99 | median over the seeds of the best setting; a seed that never reached .99 counts as infinitely late |
| seeds | number of seeds of the best setting that reached .99, of how many |
| range | earliest and latest step among these seeds |
| settings | number of settings of the grid with which every seed reached .99, of how many |
| best setting | learning rate and weight decay of W, and of V where they differ; ↑ or ↓: at the edge of its grid |
| irreps a node | irreps in which some node has more than half of its norm (features/coverage), over K |
| diversity | exp(−Σ q_k ln q_k), q_k the share of irrep k among the pure nodes |
| pure | share of pure nodes, which have more than half of their norm in one irrep |
| ms a step | median over all runs, from cost.json; in brackets as a multiple of adam's, if adam is an entrant |
| ms an update | the optimizer's part of a step |
| state | bytes of optimizer state for each byte of trained parameters |

The columns about nodes are medians over the seeds of the best setting, from the last checkpoint of each. With
``stop_at_test_accuracy`` these are nodes that have just generalized, not nodes after equally many steps.
"""

from __future__ import annotations

import json
import math
import statistics
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from li2_lightning.analysis.collect import report_unfinished
from li2_lightning.cli.commands import add_directories, add_outputs, check_outputs
from li2_lightning.config.identity import role_value
from li2_lightning.errors import InputError
from li2_lightning.files import replacing
from li2_lightning.groups.representations import block_basis, block_slices
from li2_lightning.runs.load import Run, differing_settings, find_runs
from li2_lightning.theory.features import feature_shares

LEVEL = 0.99
GRID = ("lr", "weight_decay")
ROLES = ("hidden", "output", "embedding")
SUFFIXES = (".md", ".csv")
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


def race_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The table of the module's docstring, as text; a line for each entrant, the fastest first."""
    ranked = entrants(runs)
    adam = next((_cost(entrant, "seconds_per_step") for entrant in ranked if entrant.label == "adam"), None)
    return pd.DataFrame([_line(entrant, adam) for entrant in ranked])


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
    basis = torch.tensor(block_basis(group).T).to(W.dtype)
    return share_statistics(feature_shares(W, basis, list(block_slices(group))))


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


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, padded so that the source is aligned as well."""
    cells = [list(map(str, table)), *([str(cell) for cell in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def describe_setting(values: Mapping[str, float], edges: Mapping[str, str]) -> str:
    """As "lr 0.003, λ 0.0006↑"; a value of V that differs from that of W follows after a slash."""
    parts = []
    for key, symbol in zip(GRID, ("lr", "λ"), strict=True):
        shown = [
            f"{values[role]:g}{edges.get(role, '')}" for role in (f"hidden.{key}", f"output.{key}") if role in values
        ]
        parts.append(f"{symbol} {' / '.join(dict.fromkeys(shown)) or 'none'}")
    return ", ".join(parts)


def _line(entrant: Entrant, adam: float | None) -> dict[str, str]:
    best = entrant.best
    nodes = pd.DataFrame([node_statistics(run) for run in best.runs]).median()
    step, update = _cost(entrant, "seconds_per_step"), _cost(entrant, "seconds_per_update")
    state = _cost(entrant, "optimizer_state_bytes", per="parameter_bytes")
    arrived = [step for step in best.steps if math.isfinite(step)]
    complete = sum(setting.reached == len(setting.runs) for setting in entrant.settings)
    relative = f" ({step / adam:.2f}×)" if step is not None and adam else ""
    return {
        "optimizer": entrant.label,
        f"steps to {LEVEL:g}".replace("0.", "."): f"{best.median:g}" if math.isfinite(best.median) else "–",
        "seeds": f"{best.reached} of {len(best.runs)}",
        "range": f"{arrived[0]:g}–{arrived[-1]:g}" if arrived else "–",
        "settings": f"{complete} of {len(entrant.settings)}",
        "best setting": describe_setting(best.values, entrant.edges()) if arrived else "–",
        "irreps a node": _number(nodes.get("irreps a node"), ".3f"),
        "diversity": _number(nodes.get("diversity"), ".1f"),
        "pure": _number(nodes.get("pure"), ".2f"),
        "ms a step": _number(step, ".2f", 1e3) + relative,
        "ms an update": _number(update, ".2f", 1e3),
        "state": _number(state, ".2f"),
    }


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "–" if value is None or math.isnan(value) else format(value * factor, form)


def _cost(entrant: Entrant, key: str, per: str | None = None) -> float | None:
    """The median of an entry of cost.json over the runs that have it; None if none has."""
    values = []
    for run in entrant.runs:
        path = run.directory / "cost.json"
        if path.exists():
            cost = json.loads(path.read_text(encoding="utf-8"))
            if cost[key] is not None:
                values.append(cost[key] / (cost[per] if per else 1.0))
    return statistics.median(values) if values else None


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
    optimizer = run["optimizer"]
    kept = {role: {k: v for k, v in optimizer[role].items() if k not in GRID} for role in _roles(run)}
    return json.dumps(kept, sort_keys=True)


def _labels(runs: Sequence[Run]) -> list[str]:
    """A label for the entrant of each run; optimizers of one name are told apart by their hyperparameters."""
    names = [_name(run) for run in runs]
    labels = []
    for run, name in zip(runs, names, strict=True):
        namesakes = [other for other, its in zip(runs, names, strict=True) if its == name]
        roles = tuple(f"optimizer.{role}." for role in _roles(run))
        keys = [k for k in differing_settings(namesakes) if k.startswith(roles) and k.rpartition(".")[2] not in GRID]
        more = ", ".join(f"{key.removeprefix('optimizer.')}={run.settings.get(key)}" for key in keys)
        labels.append(f"{name} {more}".strip())
    return labels


def _name(run: Run) -> str:
    hidden, output = (_role_name(run["optimizer"][role]) for role in ("hidden", "output"))
    return hidden if output == hidden else f"{hidden} / {output}"


def _role_name(section: Mapping[str, Any]) -> str:
    inner = section.get("inner")
    chain = [inner] if isinstance(inner, str) else list(inner or ())
    return "(".join([str(section["name"]), *chain]) + ")" * len(chain)


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 race``."""
    add_directories(parser)
    add_outputs(parser, SUFFIXES, required=False)
    given = parser.parse_args(arguments)

    check_outputs(given.output, SUFFIXES)
    runs = find_runs(given.directories)
    report_unfinished(runs)
    table = race_table(runs)
    text = markdown(table)
    print(text)
    for path in given.output:
        with replacing(path) as temporary:
            temporary.write_text(f"{text}\n" if path.suffix == ".md" else table.to_csv(index=False), encoding="utf-8")
