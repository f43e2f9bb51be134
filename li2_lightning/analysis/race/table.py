"""The table of a race: a line for each entrant, at its best setting."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence

import pandas as pd

from li2_lightning.analysis.race.entrants import LEVEL, Entrant, describe_setting, entrants, node_statistics
from li2_lightning.runs.load import Run


def race_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The table that ``li2 race --help`` explains, as text; a line for each entrant, the fastest first."""
    ranked = entrants(runs)
    adam = next((_cost(entrant, "seconds_per_step") for entrant in ranked if entrant.label == "adam"), None)
    return pd.DataFrame([_line(entrant, adam) for entrant in ranked])


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, padded so that the source is aligned as well."""
    cells = [list(map(str, table)), *([str(cell) for cell in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


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
