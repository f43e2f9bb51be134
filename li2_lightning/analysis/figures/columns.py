"""One or more columns over the step, a curve a run, runs of one folder in one colour.

python -m li2_lightning.figures.columns COLUMN[,COLUMN…] FOLDER… -o FILE

A FOLDER holds runs (``outputs/<name>``, one directory a seed); it is named in the legend.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from li2_lightning.errors import InputError, unknown
from li2_lightning.files import replacing
from li2_lightning.runs.metrics_csv import read_metrics

# Okabe–Ito, with a line style each for grey prints.
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#666666", (0, (6, 1))))


def draw_columns(columns: Sequence[str], folders: Sequence[Path], path: Path) -> Path:
    """Draw a panel for each column and return ``path``, whose suffix says the format.

    Raises:
        InputError: more folders than styles, a folder without runs, or a column that a run does not have.
    """
    if len(folders) > len(STYLES):
        raise InputError(f"{len(folders)} folders are more than the {len(STYLES)} that can be told apart.")
    figure = Figure(figsize=(6 * len(columns), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for folder, (color, style) in zip(folders, STYLES, strict=False):
        runs = sorted(folder.glob("*/metrics.csv"))
        if not runs:
            raise InputError(f"{folder} holds no runs; give the folder above the run directories.")
        for count, run in enumerate(runs):
            metrics = read_metrics(run)
            for axes, column in zip(panels, columns, strict=True):
                if column not in metrics:
                    raise unknown(f"column of {run}:", column, metrics.columns)
                known = metrics[["step", column]].dropna()
                label = f"{folder.name} ({len(runs)} runs)" if count == 0 else None
                axes.plot(known["step"], known[column], linestyle=style, color=color, linewidth=1.4, label=label)
    for axes, column in zip(panels, columns, strict=True):
        axes.set_xlabel("step (optimizer updates)")
        axes.set_ylabel(column)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("columns", type=lambda text: text.split(","))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    given = parser.parse_args(arguments)
    try:
        print(draw_columns(given.columns, given.folders, given.output))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
