"""Draw an experiment from the runs that it left.

    python -m li2_lightning.figures NAME DIR… -o FILE [-o FILE]

NAME is that of the experiment, with or without _quick; a DIR is a run or a folder with runs at any depth.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from li2_lightning.analysis.collect import report_unfinished
from li2_lightning.analysis.figures.registry import figure_names, find_figure
from li2_lightning.analysis.figures.style import SUFFIXES, save
from li2_lightning.cli.commands import add_directories, add_outputs, check_outputs, command_parser, run_command
from li2_lightning.runs.load import find_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("figures", __doc__)
    known = textwrap.fill(", ".join(figure_names()), 78, break_on_hyphens=False)
    parser.epilog = f"Names:\n{known}"
    parser.add_argument("name", metavar="NAME", help="what to draw")
    add_directories(parser)
    add_outputs(parser, SUFFIXES)
    given = parser.parse_args(arguments)

    def work() -> None:
        draw = find_figure(given.name)
        check_outputs(given.output, SUFFIXES)
        runs = find_runs(given.directories)
        report_unfinished(runs)
        figure = draw(runs)
        for path in given.output:
            print(save(figure, path))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
