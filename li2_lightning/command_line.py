"""Between the shell and Hydra: arguments in, one readable sentence and an exit code out."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields, is_dataclass

from omegaconf.errors import OmegaConfBaseException

from li2_lightning.config import Config, explain, unknown_key
from li2_lightning.errors import InputError, Li2Error, OtherRankError, nearest, readable

# Sections whose keys belong to a plug-in: they may be set without Hydra's "+".
_OPEN = re.compile(r"(optimizer\.(hidden|output|embedding)|callbacks\.[^.=]+|scheduler)\.[^=]+=")
# One of their options may be taken out of a named variation; what they are called may not.
_DELETABLE = re.compile(
    r"~(optimizer\.(hidden|output|embedding)|callbacks\.[^.=]+|scheduler)\.(?!name\b|enabled\b)[^=]+$"
)
_COLON = re.compile(r"\+*callbacks\.([\w.]*\w:\w+)\.([\w.]+)=(.*)", re.DOTALL)

# What the optional extra "sweep" brings.
LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")


def prepare(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra gets them.

    Raises:
        InputError: an argument without a key, one that deletes a key, or a key with a colon, for which Hydra has no
            words or other ones.
    """
    for argument in arguments:
        if argument.startswith("="):
            raise InputError(f"The argument {argument!r} is not of the form key=value.")
        if argument.startswith("~") and not _DELETABLE.match(argument):
            key = argument[1:].partition("=")[0]
            raise InputError(
                f"{argument} deletes a key, which would silently stand for its default; set it instead, as in {key}=…."
            )
        if match := _COLON.fullmatch(argument):
            path, option, value = match.groups()
            label = re.sub(r"\W", "_", path.rpartition(":")[2])
            raise InputError(
                f"A key takes no colon, as in {argument!r}; say callbacks.{label}.name={path} "
                f"callbacks.{label}.{option}={value} instead."
            )
    prepared = [opened(argument) for argument in arguments]
    # Hydra refuses a file of ours that bears the name of a launcher's own, so what we set for one lies beside it.
    prepared += [f"hydra/launching={a.partition('=')[2]}" for a in arguments if a.startswith("hydra/launcher=")]
    flags = {"-m", "--multirun"}
    if flags & set(arguments):
        # argparse wants the overrides in one piece, and there is no telling where the flag stands.
        overrides = [argument for argument in prepared if argument not in flags]
        return ["--multirun", *overrides]
    return prepared


def opened(override: str) -> str:
    """``override`` such that Hydra lets it set a key of a plug-in, of which the schema knows nothing."""
    return f"++{override}" if _OPEN.match(override) else override


def explain_keys(schema: type = Config, prefix: str = "") -> str:
    """A line for every key that config.py has a comment for."""
    lines = []
    for line in inspect.getsource(schema).splitlines():
        if match := re.match(r"    (\w+): .*?  # (.+)", line):
            lines.append(f"{prefix + match.group(1):<34} {match.group(2)}")
    for item in fields(schema):
        if isinstance(item.default_factory, type) and is_dataclass(item.default_factory):
            lines.append(explain_keys(item.default_factory, f"{prefix}{item.name}."))
    return "\n".join(line for line in lines if line)


def one_sentence(error: BaseException, composing: bool = False) -> str:
    """What went wrong, without traceback.

    Args:
        composing: the error came while Hydra composed the config.
    """
    known = _expected(error, composing)
    return readable(str(known) if known is not None else f"Internal error: {type(error).__name__}: {error}")


def show_error(error: BaseException, debug: bool, composing: bool = False) -> int:
    """Print one sentence on stderr, with the traceback where ``debug``, and return the exit code."""
    known = _expected(error, composing)
    if isinstance(known, OtherRankError) and known.silent:
        return known.exit_code
    if debug or known is None:
        traceback.print_exception(error)
    print(f"error: {one_sentence(error, composing)}", file=sys.stderr)
    return int(getattr(known, "exit_code", 1))


def _expected(error: BaseException, composing: bool) -> BaseException | None:
    """The error to show as a sentence; None for one that is our own mistake."""
    if hasattr(error, "exit_code"):
        return error
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more when it exits; there must be somebody to take it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Li2Error("The run stopped because nobody reads its output any more; continue with resume=auto.")
    return _composition_error(error) if composing else None


def _composition_error(error: BaseException) -> InputError:
    """What Hydra says about an override, in our words."""
    text = str(error)
    cause = error.__cause__
    if match := re.search(r"Could not override '([^']+)'", text):
        if isinstance(cause, OmegaConfBaseException) and "not in" not in str(cause):
            return explain(cause)
        return unknown_key(getattr(cause, "full_key", None) or match.group(1))
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        key, _, value = match.group(1).lstrip("+").partition("=")
        return InputError(
            f"{key}={value} names several values; add -m for a sweep, or write a list as {key}=[{value}]."
        )
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, choice = match.groups()
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        if group == "hydra/launcher" and choice in LAUNCHERS:
            return InputError(f"{group}={choice} is not installed; say pip install -c constraints.txt -e '.[sweep]'.")
        return InputError(f"Unknown {group} {choice!r}; known are {', '.join(options)}.{nearest(choice, options)}")
    if "Error merging override" in text and isinstance(cause, OmegaConfBaseException):
        return explain(cause)
    if type(error).__name__ == "OverrideParseException":
        argument = str(getattr(error, "override", "")).lstrip("+")
        key, _, value = argument.partition("=")
        if value:
            return InputError(
                f"The argument {argument!r} cannot be read; a value with special characters needs quotes inside the "
                f"shell's, as in {key}=\"'{value}'\"."
            )
        return InputError(f"The argument {argument!r} is not of the form key=value.")
    if isinstance(error, OmegaConfBaseException):
        return explain(error)
    first = text.splitlines()[0] if text else type(error).__name__
    return InputError(first if first.endswith((".", "?")) else f"{first}.")


def quoted(value: str) -> str:
    """A string as Hydra's override grammar takes it verbatim."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
