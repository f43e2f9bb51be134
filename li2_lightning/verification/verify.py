"""Check every theorem numerically.

    li2 verify [--quick] [--theorem N] [--group NAME] [--json FILE]

Each check is one row. It compares two computations that share no formula (ascent and prediction, draws and quadrature,
autograd and closed form), so it can fail. The exit code is 1 if a check fails, and 2 for an unknown theorem or group.
docs/theory.md lists the corrections of published constants with their checks.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from li2_lightning.errors import InputError, unknown
from li2_lightning.files import replacing
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.verification.depth import depth
from li2_lightning.verification.findings import (
    Check,
    Finding,
)
from li2_lightning.verification.groups import GROUPS
from li2_lightning.verification.independent import theorem_2, theorem_3, theorem_4
from li2_lightning.verification.interactive import theorem_5, theorem_6, theorem_7, theorem_8
from li2_lightning.verification.lazy import irreps, proposition_1, theorem_1

PER_GROUP: dict[str, Callable[[FiniteGroup, bool], Iterator[Finding]]] = {
    "irreps": irreps,
    "1": theorem_1,
    "2": theorem_2,
    "3": theorem_3,
}
WITHOUT_GROUP: dict[str, Callable[[bool], Iterator[Finding]]] = {
    "P1": proposition_1,
    "4": theorem_4,
    "5": theorem_5,
    "6": theorem_6,
    "7": theorem_7,
    "8": theorem_8,
    "depth": depth,
}
THEOREMS = ("irreps", "P1", "1", "2", "3", "4", "5", "6", "7", "8", "depth")
"""Values of ``--theorem``: a number, ``P1`` for Proposition 1, ``irreps`` for the representations, or ``depth``."""


def verify(theorem: str | None = None, group: str | None = None, quick: bool = False) -> Iterator[Check]:
    """The checks, each yielded when it is done.

    Args:
        theorem: one of `THEOREMS`; None for all.
        group: one of `GROUPS`; None for all groups, and for the checks without a group.
        quick: fewer starts, samples and groups; under a minute on one thread.

    Raises:
        InputError: unknown theorem or group, or a group for a theorem whose checks have no group.
    """
    if theorem is not None and theorem not in THEOREMS:
        raise unknown("theorem (--theorem)", theorem, THEOREMS)
    if group is not None and group not in GROUPS:
        raise unknown("group (--group)", group, GROUPS)
    if theorem in WITHOUT_GROUP and group is not None:
        raise InputError(f"The checks of theorem {theorem} take no --group; those of {', '.join(PER_GROUP)} do.")
    return _checks(theorem, group, quick)


def _checks(theorem: str | None, group: str | None, quick: bool) -> Iterator[Check]:
    for name in THEOREMS if theorem is None else (theorem,):
        if name in WITHOUT_GROUP:
            if group is None:
                for finding in WITHOUT_GROUP[name](quick):
                    yield Check(theorem=name, group="", **asdict(finding))
            continue
        for label in GROUPS if group is None else (group,):
            made = GROUPS[label]()
            # A group that the user names is checked whatever its order.
            if group is None and made.order > (12 if quick else 24 if name == "1" else 60):
                continue
            for finding in PER_GROUP[name](made, quick):
                yield Check(theorem=name, group=label, **asdict(finding))


def render(checks: Sequence[Check]) -> Table:
    """The table, one row for each check."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("theorem", "group", "statement", "computed", "expected", "observed", ""):
        table.add_column(title)
    for check in checks:
        verdict = "[green]ok[/]" if check.passed else "[bold red]FAILED[/]"
        cells = (check.theorem, check.group, check.statement, check.computed, check.expected, check.observed)
        table.add_row(*(cell.replace("[", r"\[") for cell in cells), verdict)
    return table


def main(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """The command ``li2 verify``."""
    parser.add_argument("--quick", action="store_true", help="fewer starts and groups; under a minute")
    parser.add_argument("--theorem", metavar="N", help=f"only one of {', '.join(THEOREMS)}")
    parser.add_argument("--group", metavar="NAME", help=f"only one of {', '.join(GROUPS)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the checks to a file, too")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    # Checked first, since the checks take a minute or more.
    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise InputError(f"The file {options.json} cannot be written: it is a folder, or its folder does not exist.")
    checks = list(verify(options.theorem, options.group, options.quick))
    failed = sum(not check.passed for check in checks)
    if options.json is not None:
        _write(options.json, checks, options.quick)
    # A pipe has no width, and rich's default of 80 columns would break every cell.
    console = Console() if sys.stdout.isatty() else Console(width=170)
    console.print(render(checks))
    took = time.perf_counter() - started
    console.print(f"{len(checks) - failed} of {len(checks)} checks passed in {took:.0f} s", highlight=False)
    return 1 if failed else 0


def _write(path: Path, checks: Sequence[Check], quick: bool) -> None:
    content = {
        "schema_version": 1,
        "quick": quick,
        "passed": all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
    }
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"The file {path} cannot be written: {error.strerror}.") from error
