"""Optimizers compared on one task: the table of a race, from the runs of a grid for each.

    li2 race DIR… [-o race.md] [-o race.csv]

One line an *entrant*: an optimizer section without its learning rates and weight decays, whose values make up the
entrant's grid. All runs must agree in everything else but the seed. Of an entrant's settings the **best** is the one
with which most seeds reached test accuracy .99; of equals, the one whose median step is smallest. That is one rule for
all, but it is a minimum over the grid and so flatters whoever has more settings: the table gives their number.

| column | meaning |
|---|---|
| optimizer | what trains W (its inner optimizer in brackets); if V has another one, that after a slash |
| steps to .99 | median over the seeds of the best setting, a seed that did not get there counting as later than any |
| seeds | how many seeds got there, of how many |
| range | the earliest and latest seed that got there |
| settings | of the grid, how many took every seed there, of how many |
| best setting | learning rate and weight decay of W, and of V where they differ; ↑ or ↓: at the edge of its grid |
| irreps a node | features/coverage over K in the last row: irreps in which some node has more than half of its norm |
| diversity | exp(−Σ q_k ln q_k), q_k the share of irrep k among the nodes with more than half of their norm in one |
| pure | share of such nodes |
| ms a step | median over all runs of cost.json's; in brackets in multiples of adam's, where adam races, too |
| ms an update | the optimizer's part of it |
| state | bytes of optimizer state for each byte of trained parameters |

The nodes are those of the last checkpoint of the best setting, the median over its seeds: with
``stop_at_test_accuracy`` all entrants are looked at when they have just generalized, not after equally many steps.
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
# May differ between the runs of a race: where they are kept, how they are watched, and what races.
FREE = ("name", "callbacks", "trainer", "optimizer")


@dataclass(frozen=True)
class Setting:
    """One point of an entrant's grid, with a run for each seed."""

    values: dict[str, float]
    runs: list[Run]

    @cached_property
    def steps(self) -> list[float]:
        """First step with test accuracy .99, a seed each, sorted; ∞ where there is none."""
        first = (run.first_step("test/accuracy", LEVEL) for run in self.runs)
        return sorted(math.inf if step is None else float(step) for step in first)

    @property
    def reached(self) -> int:
        """How many seeds got there."""
        return sum(math.isfinite(step) for step in self.steps)

    @property
    def median(self) -> float:
        """Median step; ∞ where half of the seeds or more did not get there."""
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
        """All of them."""
        return [run for setting in self.settings for run in setting.runs]

    def edges(self) -> dict[str, str]:
        """↑ or ↓ for each value of the best setting that is the largest or smallest of its grid."""
        found = {}
        for key, value in self.best.values.items():
            grid = {setting.values[key] for setting in self.settings}
            if len(grid) > 1 and value in (min(grid), max(grid)):
                found[key] = "↑" if value == max(grid) else "↓"
        return found


def entrants(runs: Sequence[Run]) -> list[Entrant]:
    """The runs that ended, by optimizer and setting; the fastest entrant first.

    Raises:
        InputError: runs that differ in more than their optimizers and seeds, or none that ended.
    """
    ended = [run for run in runs if run.summary is not None]
    if not ended:
        raise InputError("None of the runs has ended, so there is nothing to compare.")
    others = [key for key in differing_settings(ended) if key.partition(".")[0] not in FREE]
    if others:
        raise InputError(f"A race is on one task: these runs differ in {', '.join(others)}; name fewer directories.")
    fields: dict[str, dict[str, Setting]] = {}
    for run in ended:
        values = {key: value for key, value in _grid_values(run).items() if value is not None}
        settings = fields.setdefault(_identity(run), {})
        settings.setdefault(json.dumps(values), Setting(values, [])).runs.append(run)
    labels = _labels([next(iter(settings.values())).runs[0] for settings in fields.values()])
    found = [Entrant(label, list(settings.values())) for label, settings in zip(labels, fields.values(), strict=True)]
    return sorted(found, key=lambda entrant: (-entrant.best.reached, entrant.best.median, entrant.label))


def race_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The table of the module's docstring, as text; a line an entrant, the fastest first."""
    field = entrants(runs)
    reference = next((seconds for e in field if e.label == "adam" and (seconds := _cost(e, "seconds_per_step"))), None)
    return pd.DataFrame([_line(entrant, reference) for entrant in field])


def node_statistics(run: Run) -> dict[str, float]:
    """``irreps a node``, ``diversity`` and ``pure`` of the last checkpoint; empty where the nodes have no irreps.

    Formulas in the module's docstring. Diversity is the number of irreps that equally shared nodes would have the same
    entropy with: between 1 and the number of non-trivial irreps (conjugate pairs are one); NaN without a pure node.
    """
    group = run.task.group
    if (
        group is None
        or run["network.name"] != "two_layer"
        or not (run.directory / "checkpoints" / "last.ckpt").exists()
    ):
        return {}
    weights = run.weights()
    W = weights["W"].reshape(-1, group.order, weights["W"].shape[-1])
    W = (weights["E"] @ W if "E" in weights else W).flatten(0, 1)
    return share_statistics(
        feature_shares(W, torch.tensor(block_basis(group).T).to(W.dtype), list(block_slices(group)))
    )


def share_statistics(shares: Tensor) -> dict[str, float]:
    """The same from ``feature_shares``, blocks × K."""
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
    """A Markdown table, columns aligned in the source, too."""
    cells = [list(map(str, table)), *([str(cell) for cell in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def describe_setting(values: Mapping[str, float], edges: Mapping[str, str]) -> str:
    """As "lr 0.003, λ 0.0006↑"; V's own values after a slash where they differ from those of W."""
    parts = []
    for key, symbol in zip(GRID, ("lr", "λ"), strict=True):
        shown = [
            f"{values[role]:g}{edges.get(role, '')}" for role in (f"hidden.{key}", f"output.{key}") if role in values
        ]
        parts.append(f"{symbol} {' / '.join(dict.fromkeys(shown)) or 'none'}")
    return ", ".join(parts)


def _line(entrant: Entrant, reference: float | None) -> dict[str, str]:
    best = entrant.best
    nodes = pd.DataFrame([node_statistics(run) for run in best.runs]).median()
    step, update = _cost(entrant, "seconds_per_step"), _cost(entrant, "seconds_per_update")
    state = _cost(entrant, "optimizer_state_bytes", per="parameter_bytes")
    arrived = [step for step in best.steps if math.isfinite(step)]
    complete = sum(setting.reached == len(setting.runs) for setting in entrant.settings)
    relative = f" ({step / reference:.2f}×)" if step is not None and reference is not None else ""
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
    """The median over the runs of an entry of cost.json; None where no run has it."""
    values = []
    for run in entrant.runs:
        path = run.directory / "cost.json"
        if path.exists():
            cost = json.loads(path.read_text(encoding="utf-8"))
            if cost[key] is not None:
                values.append(cost[key] / (cost[per] if per else 1.0))
    return statistics.median(values) if values else None


def _grid_values(run: Run) -> dict[str, float | None]:
    """Learning rate and weight decay of each role that the network has, the shared one where it has none of its own."""
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
    """A name for each entrant, by one of its runs; hyperparameters are added where names alone do not tell."""
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
