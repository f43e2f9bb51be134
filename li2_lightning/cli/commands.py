"""What the commands ``python -m li2_lightning.NAME`` share: a parser, checked output files, one-sentence errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from li2_lightning.errors import InputError, unknown


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            status = _unread()
        super().exit(status, message)


def _unread() -> int:
    """The exit code where whoever read our output has seen enough."""
    # Python must not complain when it flushes once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it stands."""
    return _Parser(
        prog=f"python -m li2_lightning.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_directories(parser: argparse.ArgumentParser) -> None:
    """The arguments ``DIR…``, for `li2_lightning.runs.load.find_runs`."""
    parser.add_argument("directories", nargs="+", metavar="DIR", type=Path,
                        help="a run, or a folder with runs at any depth")  # fmt: skip


def add_outputs(parser: argparse.ArgumentParser, suffixes: Sequence[str], required: bool = True) -> None:
    """The option ``-o FILE``, which may be given several times."""
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, action="append", required=required, default=[],
                        help=f"its suffix says the format ({', '.join(suffixes)}); may be repeated")  # fmt: skip


def check_outputs(paths: Sequence[Path], suffixes: Sequence[str]) -> None:
    """Raise an `InputError`, before any work, for a file of unknown suffix or in a folder that is not there."""
    for path in paths:
        if path.suffix not in suffixes:
            raise unknown(f"suffix of {path}:", path.suffix, suffixes)
        if not path.parent.is_dir():
            raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")


def optional_module(name: str, purpose: str) -> ModuleType:
    """A module of the extra ``report``; an `InputError` that says how to install it where it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{purpose} needs {package}; install it with pip install 'li2-lightning[report]'.") from error


def run_command(work: Callable[[], None]) -> int:
    """Do the work and return the exit code: 2, with one sentence on stderr, for input that cannot be."""
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        return _unread()
    except KeyboardInterrupt:
        print("error: Stopped by SIGINT.", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}.", file=sys.stderr)
        return 2
    return 0
