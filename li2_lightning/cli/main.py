"""The program ``li2`` and its commands.

A command is imported only when it is called, so ``li2 --help`` loads only the standard library.
"""

from __future__ import annotations

import argparse
import gc
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import li2_lightning
from li2_lightning.cli.commands import print_in_any_encoding
from li2_lightning.errors import InputError, leave, readable, unknown


class Command(NamedTuple):
    """A command of ``li2``.

    Attributes:
        target: ``module:function``, which gets a parser and the words after the command. It adds its arguments to the
            parser, parses the words, and returns the exit code, or None for 0. `train` gets neither.
        purpose: one line for ``li2 --help``.
        example: one call, for the help of the command.
    """

    target: str
    purpose: str
    example: str


COMMANDS = {
    "train": Command("train:main", "train a network; with -m a sweep", "li2 train task.order=31 max_steps=100"),
    "report": Command(
        "li2_lightning.analysis.html_report:main",
        "show a run or a sweep as one HTML page",
        "li2 report outputs/latest",
    ),
    "animate": Command(
        "li2_lightning.analysis.animate:main",
        "show the features of a run as a film (.mp4, .gif)",
        "li2 animate outputs/latest -o features.mp4",
    ),
    "compare": Command(
        "li2_lightning.analysis.compare:main",
        "show what differs between runs, in settings and in outcome",
        "li2 compare outputs/fig03_weight_decay outputs/fig03_no_weight_decay -o compare.html",
    ),
    "collect": Command(
        "li2_lightning.analysis.collect:main",
        "write one table of many runs (.csv, .parquet)",
        "li2 collect outputs -o results.csv",
    ),
    "figures": Command(
        "li2_lightning.analysis.draw:main",
        "draw an experiment, or columns over the step (.png, .pdf, .svg)",
        "li2 figures fig03_weight_decay outputs/fig03_weight_decay -o fig03.pdf",
    ),
    "race": Command(
        "li2_lightning.analysis.race.command:main",
        "compare optimizers, tuned and confirmed on fresh seeds",
        "li2 race outputs/optimizer_race_quick",
    ),
    "wandb-view": Command(
        "li2_lightning.analysis.wandb_pages:view",
        "create a view of a W&B project, with the charts in reading order",
        "li2 wandb-view --dry-run",
    ),
    "wandb-report": Command(
        "li2_lightning.analysis.wandb_pages:report",
        "create a report of a sweep on W&B",
        "li2 wandb-report outputs/optimizer_race_quick --dry-run",
    ),
    "verify": Command(
        "li2_lightning.verification.verify:main",
        "check every theorem numerically",
        "li2 verify --quick --theorem 2",
    ),
    "groups": Command(
        "li2_lightning.groups.small_groups:main",
        "list the groups of task=small_group",
        "li2 groups --order 8 --non-abelian",
    ),
    "check": Command(
        "optimizers.check:main",
        "check whether an optimizer keeps the contract of the plug-ins",
        "li2 check my_module:SignDescent --hyperparameter lr=0.01",
    ),
    "play": Command(
        "li2_lightning.cli.play:main",
        "train a small network in the browser, with sliders",
        "li2 play",
    ),
    "doctor": Command(
        "li2_lightning.cli.doctor:main",
        "show what is installed and in use, for a bug report",
        "li2 doctor",
    ),
}

HELP = """\
usage: li2 COMMAND ...

Watch features emerge while a network learns group arithmetic.

{commands}

li2 COMMAND --help explains a command and shows an example of it.
li2 --version prints the version.
""".format(commands="\n".join(f"  {name:<13}{command.purpose}" for name, command in COMMANDS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process, and return its exit code."""
    print_in_any_encoding()
    name, *words = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(HELP, end="")
    elif name == "--version":
        print(f"li2_lightning {li2_lightning.__version__}")
    elif name == "":
        print(HELP, end="", file=sys.stderr)
        return 2
    elif name == "-sc" and "COMP_LINE" in os.environ:
        return _complete(words)
    else:
        return _exit_code(name, words, here=arguments is None)
    return 0


def _exit_code(name: str, words: Sequence[str], here: bool) -> int:
    """Run a command and return its exit code; a user's error is one sentence on stderr."""
    try:
        try:
            code = _run(name, words, here)
        finally:
            # If the reader has ended, this raises here; at exit Python would print the error.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, for example `head`, has ended. Python flushes again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("error: Stopped by SIGINT.", file=sys.stderr)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}.", file=sys.stderr)
        return 2
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        print(f"error: {readable(str(error))}", file=sys.stderr)
        return int(error.exit_code)
    return code or 0


def _run(name: str, words: Sequence[str], here: bool) -> int | None:
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    if name == "train" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # `train.main` restores Python's own handler.
        signal.signal(signal.SIGINT, leave)
    try:
        function = pkgutil.resolve_name(command.target)
    except ImportError as error:
        raise InputError(f"li2 {name} cannot be loaded ({error}); li2 doctor shows what is installed.") from error
    if here:
        # The current folder may hold plug-ins that are named by import path. Our folder comes before it, because it may
        # hold another train.py. The processes of a sweep inherit this path.
        sys.path += [str(Path(li2_lightning.__file__).parents[1]), os.getcwd()]
        # When Python exits, it searches all objects for garbage; without those of the imports that takes a second less.
        gc.freeze()
    if name == "train":
        # Hydra reads sys.argv and shows its first word in messages. The shell completes for the program li2.
        completion = words[:1] in (["-sc"], ["--shell-completion"])
        sys.argv = ["li2" if completion else "li2 train", *words]
        return int(function())
    parser = argparse.ArgumentParser(
        prog=f"li2 {name}",
        description=sys.modules[function.__module__].__doc__,
        epilog=f"Example:\n\n    {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    code: int | None = function(parser, words)
    return code


def _complete(words: Sequence[str]) -> int:
    """Answer the shell function that ``li2 train --shell-completion install=SHELL`` defines.

    The function calls ``li2 -sc query=SHELL``, with the line typed so far in COMP_LINE.
    """
    program, _, line = os.environ["COMP_LINE"].partition(" ")
    name, space, rest = line.lstrip().partition(" ")
    if not space:
        print(" ".join(command for command in COMMANDS if command.startswith(name)))
    elif name == "train":
        os.environ["COMP_LINE"] = f"{program} {rest}"
        return _exit_code("train", ["-sc", *words], here=True)
    return 0
