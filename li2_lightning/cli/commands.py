"""What the commands of ``li2`` share: arguments, checks of output files before any work is done, and stdout."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from li2_lightning.errors import InputError, unknown


def print_in_any_encoding() -> None:
    """Let stdout show ``?`` for a character that its encoding lacks, such as ``×`` in ASCII, which else is an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def add_directories(parser: argparse.ArgumentParser) -> None:
    """Add the arguments ``DIR…``, for `li2_lightning.runs.load.find_runs`."""
    parser.add_argument("directories", nargs="+", metavar="DIR", type=Path,
                        help="a run, or a folder with runs at any depth")  # fmt: skip


def add_outputs(parser: argparse.ArgumentParser, suffixes: Sequence[str], required: bool = True) -> None:
    """Add the option ``-o FILE``, which may be repeated."""
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, action="append", required=required, default=[],
                        help=f"its suffix says the format ({', '.join(suffixes)}); may be repeated")  # fmt: skip


def check_outputs(paths: Sequence[Path], suffixes: Sequence[str]) -> None:
    """Raise an `InputError` for a file with an unknown suffix, or in a folder that does not exist or is read-only."""
    for path in paths:
        if path.suffix not in suffixes:
            raise unknown(f"suffix of {path}:", path.suffix, suffixes)
        if not path.parent.is_dir():
            raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written: the folder {path.parent} is read-only; name another with -o.")


def optional_module(name: str, purpose: str, extra: str = "report") -> ModuleType:
    """Import a module of an extra of setup.cfg; if it is absent, an `InputError` says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{purpose} needs {package}; install it with pip install 'li2-lightning[{extra}]'.") from error
