"""What differs between runs, in their settings and in their outcomes.

    li2 compare RUN RUN… [-o FILE]

Runs that differ only in their seeds share a column, which shows their median, lowest and highest value. FILE shows the
curves of all runs: a picture, or a page with interactive plots (.html).
"""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from li2_lightning.analysis.collect import outcome, report_unfinished
from li2_lightning.analysis.figures.curves import draw_curves, draw_legend, explain, with_rows
from li2_lightning.analysis.figures.style import SUFFIXES, curve_styles, new_figure, save
from li2_lightning.analysis.html_report import write_comparison
from li2_lightning.cli.commands import add_directories, add_outputs, check_outputs
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, differing_settings, find_runs, groups_of_seeds, show

MOST_GROUPS = 6

# Columns of li2 collect, without outcome/, and the name of each in this table.
OUTCOMES = {
    "status": "status",
    "step": "last row",
    "first_step/train/0.99": "train accuracy .99 at",
    "first_step/test/0.5": "test accuracy .5 at",
    "first_step/test/0.9": "test accuracy .9 at",
    "first_step/test/0.99": "test accuracy .99 at",
    "stage/2": "stage II at",
    "stage/3": "stage III at",
    "stage/stalled": "stalled",
    "final/test/accuracy": "test accuracy at the end",
    "final/test/loss": "test loss at the end",
    "max/gradient/norm": "largest ‖G_F‖",
    "max_step/gradient/norm": "largest ‖G_F‖ at",
    "final/energy/mean": "mean energy at the end",
    "final/features/purity": "purity at the end",
    "final/features/coverage": "irreps covered at the end",
    "wall_time_s": "seconds",
}
PANELS = ("test/accuracy", "test/loss", "gradient/norm", "update/hidden", "energy/mean", "features/purity")


def comparison(groups: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """The table of what differs, with a column A, B, … for each group.

    Keys: ``title``, ``head``, ``settings``, ``outcomes``, ``rows`` (settings, then outcomes) and ``notes``.
    """
    runs = [run for group in groups.values() for run in group]
    settings = [
        [key, *(show(group[0].settings.get(key)) for group in groups.values())] for key in differing_settings(runs)
    ]
    found = [[outcome(run) for run in group] for group in groups.values()]
    outcomes = []
    for column, title in OUTCOMES.items():
        cells = [_summarize([each.get(column) for each in group]) for group in found]
        if len(set(cells)) > 1 or len(groups) == 1:
            outcomes.append([title, *cells])
    letters = [chr(ord("A") + index) for index in range(len(groups))]
    notes = []
    for letter, (label, group) in zip(letters, groups.items(), strict=True):
        several = f"{len(group)} runs, {label}" if len(group) > 1 else str(group[0].directory)
        notes.append(f"{letter}: {several}")
    if any(len(group) > 1 for group in groups.values()):
        notes.append("Of several seeds: the median, lowest to highest.")
    return {"title": "What differs", "head": ["", *letters], "settings": settings, "outcomes": outcomes,
            "rows": [*settings, *outcomes], "notes": notes}  # fmt: skip


def draw_comparison(groups: Mapping[str, Sequence[Run]]) -> Figure:
    """Six columns of metrics.csv over the step, with a curve and its band for each group.

    Raises:
        InputError: no run has rows.
    """
    runs = with_rows([run for group in groups.values() for run in group], ())
    columns = [name for name in PANELS if any(name in run.metrics for run in runs)]
    figure = new_figure(15, 8)
    panels = list(figure.subplots(2, 3).ravel())
    styles = curve_styles(groups)
    draw_curves(panels[: len(columns)], columns, groups, runs, styles)
    for axes in panels[len(columns) :]:
        axes.remove()
    for axes in panels[: len(columns)]:
        axes.set_xlabel("step (optimizer updates)")
    draw_legend(figure, styles, True, beside=3)
    figure.suptitle(explain(runs), fontsize=9)
    return figure


def print_comparison(table: Mapping[str, Any], console: Console) -> None:
    """Print the table; 80 characters are wide enough for `MOST_GROUPS` groups."""
    for line in table["notes"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("")
    for letter in table["head"][1:]:
        shown.add_column(letter, overflow="fold")
    for row in table["settings"]:
        shown.add_row(*map(Text, row))
    shown.add_section()
    for row in table["outcomes"]:
        shown.add_row(*map(Text, row))
    console.print(shown)


def _summarize(values: Sequence[Any]) -> str:
    """One cell for the values of a group's seeds."""
    known = [value for value in values if value is not None and not pd.isna(value)]
    missing = f" ({len(values) - len(known)} never)" if known and len(known) < len(values) else ""
    if not known:
        return "–"
    if isinstance(known[0], str):
        counts = pd.Series(known).value_counts()
        return str(known[0]) if len(counts) == 1 else ", ".join(f"{n} {word}" for word, n in counts.items())
    if isinstance(known[0], bool):
        return ("yes" if known[0] else "no") if len(known) == 1 else f"{sum(known)} of {len(known)}"
    low, middle, high = min(known), float(np.median(known)), max(known)
    return (_number(middle) if low == high else f"{_number(middle)} ({_number(low)}–{_number(high)})") + missing


def _number(value: float) -> str:
    return f"{value:.0f}" if math.isclose(value, round(value)) and abs(value) < 1e6 else f"{value:.4g}"


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 compare``."""
    suffixes = (*SUFFIXES, ".html")
    add_directories(parser)
    add_outputs(parser, suffixes, required=False)
    given = parser.parse_args(arguments)

    check_outputs(given.output, suffixes)
    runs = find_runs(given.directories)
    if len(runs) < 2:
        raise InputError("There is only one run to compare; name another.")
    groups = groups_of_seeds(runs)
    if len(groups) == 1:
        # Only the seeds differ, so each run has a column.
        groups = {f"seed {run.seeds}": [run] for run in runs}
    if len(groups) > MOST_GROUPS:
        raise InputError(
            f"The runs fall into {len(groups)} groups, of which {MOST_GROUPS} fit beside each other; "
            "li2 collect makes a table of any number."
        )
    report_unfinished(runs)
    table = comparison(groups)
    print_comparison(table, Console())
    for path in given.output:
        if path.suffix == ".html":
            print(write_comparison(runs, table, path))
        else:
            print(save(draw_comparison(groups), path))
