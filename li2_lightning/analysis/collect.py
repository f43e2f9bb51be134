"""One table of many runs: a row for each run, with its settings and its outcome.

    li2 collect DIR… -o results.csv [-o results.parquet]

| column | meaning |
|---|---|
| `directory` | directory of the run |
| `optimizer.lr`, … | every key of its config.yaml; a list as JSON |
| `outcome/status` | finished, diverged or unfinished |
| `outcome/reason` | why the run diverged |
| `outcome/step` | step of the last row |
| `outcome/train_fraction` | n/N |
| `outcome/predicted_fraction` | n/N at which test accuracy is predicted to jump; groups only |
| `outcome/first_step/SPLIT/LEVEL` | first step at which train or test accuracy reached .5, .9, .99 |
| `outcome/stage/2`, `outcome/stage/3` | step at which stage II, III was declared |
| `outcome/stage/stalled` | whether the run stalled in stage II |
| `outcome/final/COLUMN` | every column of the last row |
| `outcome/max/COLUMN`, `outcome/max_step/COLUMN` | largest value of the column, and the first step that has it |
| `outcome/wall_time_s`, `outcome/steps_per_second` | time and speed of the process that ended the run |

Unknown values are empty.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from li2_lightning.cli.commands import add_directories, add_outputs, check_outputs, optional_module
from li2_lightning.errors import InputError
from li2_lightning.files import replacing
from li2_lightning.runs.directory import THRESHOLDS
from li2_lightning.runs.load import Run, find_runs

SUFFIXES = (".csv", ".parquet")


def collect(directories: Iterable[str | Path]) -> pd.DataFrame:
    """The table of every run in or below the directories; the columns are those of the module's docstring.

    Raises:
        InputError: a directory without runs, or a damaged file.
    """
    return table(find_runs(directories))


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """The table of these runs, in their order."""
    frame = pd.DataFrame(
        {
            "directory": str(run.directory),
            **{key: json.dumps(value) if isinstance(value, list) else value for key, value in run.settings.items()},
            **{f"outcome/{name}": value for name, value in outcome(run).items()},
        }
        for run in runs
    )
    # Int64 has an empty value, so steps stay integers where some run never reached one.
    prefixes = ("outcome/first_step/", "outcome/stage/", "outcome/max_step/")
    steps = [name for name in map(str, frame) if name.startswith(prefixes)]
    types = {name: "boolean" if name == "outcome/stage/stalled" else "Int64" for name in [*steps, "outcome/step"]}
    return frame.astype(types)


def outcome(run: Run) -> dict[str, Any]:
    """What came out of one run, by the names of the columns without ``outcome/``."""
    summary, metrics = run.summary or {}, run.metrics
    found: dict[str, Any] = {
        "status": run.status,
        "reason": summary.get("reason"),
        "step": int(metrics.index[-1]) if len(metrics) else None,
        **_fractions(run),
    }
    for split in ("train", "test"):
        for level in THRESHOLDS:
            found[f"first_step/{split}/{level:g}"] = run.first_step(f"{split}/accuracy", level)
    found |= {"stage/2": run.entered.get(2), "stage/3": run.entered.get(3)}
    found["stage/stalled"] = bool(run.stages["stalled"]) if run.stages else None
    for name in metrics:
        known = metrics[name].dropna()
        found[f"final/{name}"] = metrics[name].iloc[-1]
        found[f"max/{name}"] = known.max() if len(known) else None
        found[f"max_step/{name}"] = int(known.index[int(known.argmax())]) if len(known) else None
    return found | {key: summary.get(key) for key in ("wall_time_s", "steps_per_second")}


def write(frame: pd.DataFrame, path: Path) -> Path:
    """Write the table as CSV or, where the suffix of ``path`` is .parquet, as Parquet.

    Raises:
        InputError: Parquet without the package pyarrow.
    """
    if path.suffix == ".parquet":
        optional_module("pyarrow", "Writing Parquet")
    with replacing(path) as temporary:
        if path.suffix != ".parquet":
            frame.to_csv(temporary, index=False)
        else:
            # A Parquet column has one type, but a setting may be a number in one run and a word in another.
            mixed = {name: "string" for name in frame if pd.api.types.infer_dtype(frame[name]).startswith("mixed")}
            frame.astype(mixed).to_parquet(temporary, index=False)
    return path


def report_unfinished(runs: Sequence[Run]) -> None:
    """Name the unfinished and diverged runs on stderr."""
    for run in runs:
        if not run.finished:
            rows = f"its last row is {run.metrics.index[-1]}" if len(run.metrics) else "it has no row yet"
            print(f"{run.status}: {run.directory} ({rows} of {run['max_steps']})", file=sys.stderr)


def _fractions(run: Run) -> dict[str, float | None]:
    try:
        return {"train_fraction": run.train_fraction, "predicted_fraction": run.task.predicted_fraction}
    except InputError:
        # The table of the group or the split file is gone; the rest of the row does not need it.
        return {"train_fraction": None, "predicted_fraction": None}


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 collect``."""
    add_directories(parser)
    add_outputs(parser, SUFFIXES)
    given = parser.parse_args(arguments)

    check_outputs(given.output, SUFFIXES)
    runs = find_runs(given.directories)
    report_unfinished(runs)
    frame = table(runs)
    for path in given.output:
        print(f"{len(runs)} runs: {write(frame, path)}")
