"""Draw the picture of an experiment, or columns of metrics.csv.

    li2 figures NAME DIR… -o FILE [-o FILE]
    li2 figures COLUMN[,COLUMN…] DIR… -o FILE [-o FILE]

NAME is an experiment, with or without _quick. A COLUMN is drawn over the step, with a curve for each setting in which
the runs differ. A DIR is a run or a folder with runs at any depth.
"""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial

from li2_lightning.analysis.collect import report_unfinished
from li2_lightning.analysis.figures import figure_names, find_figure
from li2_lightning.analysis.figures.curves import curves
from li2_lightning.analysis.figures.style import SUFFIXES, save
from li2_lightning.cli.commands import add_directories, add_outputs, check_outputs
from li2_lightning.runs.load import find_runs


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 figures``."""
    known = textwrap.fill(", ".join(figure_names()), 78, break_on_hyphens=False)
    parser.epilog = f"Names:\n{known}\n\n{parser.epilog}"
    parser.add_argument("name", metavar="NAME", help="an experiment or columns")
    add_directories(parser)
    add_outputs(parser, SUFFIXES)
    given = parser.parse_args(arguments)

    # Only the name of a column has a slash, as in test/loss.
    columns = given.name.split(",")
    draw = partial(curves, columns=columns) if "/" in given.name else find_figure(given.name)
    check_outputs(given.output, SUFFIXES)
    runs = find_runs(given.directories)
    report_unfinished(runs)
    figure = draw(runs)
    for path in given.output:
        print(save(figure, path))
