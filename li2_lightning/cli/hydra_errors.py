"""Prepares the command line for Hydra, and turns errors into one readable sentence and an exit code."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

from omegaconf.errors import OmegaConfBaseException

from li2_lightning._compat import (
    KNOWN_CHOICE,
    SEVERAL_VALUES,
    UNKNOWN_CHOICE,
    UNKNOWN_OVERRIDE,
    is_memory_full,
    is_refused_value,
    is_unknown_key,
    unreadable_override,
)
from li2_lightning.config.checks import explain, unknown_key
from li2_lightning.config.schema import Config, declared, section_of
from li2_lightning.errors import InputError, Li2Error, OtherRankError, nearest, readable, unknown

# Keys of a plug-in, which may be set without Hydra's "+": an option, or several as in optimizer.hidden={name:sgd,lr:1}.
_PLUGIN_KEY = re.compile(
    r"((optimizer\.(hidden|output|embedding)|callbacks\.[^.=]+|logger\.options|trainer\.extra)(\.[^=]+)?"
    r"|scheduler\.[^=]+)="
)
# A key of a plug-in may be deleted from a named variation, except for its name and its switch.
_DELETABLE = re.compile(
    r"~(optimizer\.(hidden|output|embedding)|callbacks\.[^.=]+|scheduler)\.(?!name\b|enabled\b)[^=]+$"
)
_COLON = re.compile(r"\+*callbacks\.([\w.]*\w:\w+)\.([\w.]+)=(.*)", re.DOTALL)

# The launchers that the optional extra "sweep" installs.
LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")

# Hydra's flags: without a value, and with one.
SWITCHES = (("help", "h"), ("hydra-help", None), ("version", None), ("resolve", None), ("run", "r"), ("multirun", "m"),
            ("shell-completion", "sc"))  # fmt: skip
VALUED = (("cfg", "c"), ("package", "p"), ("config-path", "cp"), ("config-name", "cn"), ("config-dir", "cd"),
          ("experimental-rerun", None), ("info", "i"))  # fmt: skip
CHOICES = {
    "cfg": ("job", "hydra", "all"),
    "info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
# The folders of configs/: the value of such a key is the name of a file in its folder.
GROUPS = ("task", "network", "optimizer", "scheduler", "callbacks", "logger", "trainer", "workload", "experiment")
_GROUP = re.compile(rf"({'|'.join(GROUPS)}|hydra(?:/\w+)*)(@[^=]*)?=")
# Width of the help text, and the column at which the meaning of a key begins.
HELP_WIDTH, HELP_INDENT = 100, 38
# Values that Hydra reads as null, a truth value or a number.
_NO_NAME = re.compile(r"(null|true|false|[+-]?(inf|nan|[\d._]+(e[+-]?\d+)?))?", re.IGNORECASE)


def prepare(arguments: Sequence[str]) -> list[str]:
    """The arguments for Hydra: first its flags, wherever they stood, then the overrides.

    Raises:
        InputError: an unknown flag, an argument without a key, an argument that deletes a key, a key with a colon, or
            bytes that are no text.
    """
    for argument in arguments:
        # Python reads such bytes as halves of surrogate pairs, which no file of ours can hold.
        if not argument.isascii() and re.search("[\ud800-\udfff]", argument):
            raise InputError(
                f"The argument {argument!a} is no text in this terminal's encoding, "
                f"{sys.getfilesystemencoding()}; use other characters, or set LC_ALL=C.UTF-8."
            )
    flags, overrides = _sorted(arguments)
    for override in overrides:
        if override.startswith("="):
            raise InputError(f"The argument {override!r} is not of the form key=value.")
        if override.startswith("~") and not _DELETABLE.match(override):
            key = override[1:].partition("=")[0]
            raise InputError(
                f"{override} deletes a key, which would then silently have its default; set it instead, as in {key}=…."
            )
        if match := _COLON.fullmatch(override):
            path, option, value = match.groups()
            label = re.sub(r"\W", "_", path.rpartition(":")[2])
            raise InputError(
                f"A key takes no colon, as in {override!r}; say callbacks.{label}.name={path} "
                f"callbacks.{label}.{option}={value} instead."
            )
    # Hydra refuses a second file of a launcher's name in hydra/launcher, so our settings are in hydra/launching.
    launching = [f"hydra/launching={a.partition('=')[2]}" for a in overrides if a.startswith("hydra/launcher=")]
    return [*flags, *map(to_hydra, [*overrides, *launching])]


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:]}.")


def _sorted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags in their long form, and overrides; Hydra's own parser would not accept flags between overrides."""
    parser = _Parser(add_help=False)
    names: dict[str, str] = {}
    for name, short in (*SWITCHES, *VALUED):
        spelt = [f"--{name}", *([f"-{short}"] if short else [])]
        names |= dict.fromkeys(spelt, name)
        if (name, short) in SWITCHES:
            parser.add_argument(*spelt, action="store_true")
        else:
            parser.add_argument(*spelt, choices=CHOICES.get(name))
    parser.add_argument("overrides", nargs="*")
    following = [*arguments[1:], ""]
    # --info is the only flag with an optional value.
    whole = [
        "--info=all" if names.get(argument) == "info" and then not in CHOICES["info"] else argument
        for argument, then in zip(arguments, following, strict=False)
    ]
    given, rest = parser.parse_known_intermixed_args(whole)
    if rest:
        raise unknown("flag", rest[0].partition("=")[0], names)
    values = {name: getattr(given, name.replace("-", "_")) for name in names.values()}
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items() if value]
    return flags, given.overrides


def to_hydra(override: str) -> str:
    """``override`` in Hydra's notation.

    A key of a plug-in, which the schema does not contain, gets the prefix ``++``. The name of a variation is quoted if
    Hydra would read it as null or a number; Hydra then reports it as unknown and lists the known names.
    """
    if _PLUGIN_KEY.match(override):
        return f"++{override}"
    if match := _GROUP.match(override):
        values = override[match.end() :].split(",")
        return match.group() + ",".join(quoted(v) if _NO_NAME.fullmatch(v) else v for v in values)
    return override


def explain_keys(schema: type = Config) -> str:
    """Every key with its default, its meaning and its allowed values, for ``--help``."""
    lines = []
    for key, item in declared(schema):
        metadata, is_section = item.metadata, section_of(item) is not None
        allowed = " and ".join(bound.words for bound in metadata["range"]) or " | ".join(metadata["choices"])
        text = metadata["help"] + (f" ({allowed})" if allowed else "")
        default = item.default_factory() if callable(item.default_factory) else item.default
        written = f"== {key}" if is_section else f"{key}={json.dumps(default, ensure_ascii=False)}"
        lines += textwrap.wrap(f"{written:<{HELP_INDENT - 1}} {text}", HELP_WIDTH, subsequent_indent=" " * HELP_INDENT)
    return "\n".join(lines)


def explain_groups(options: Mapping[str, Sequence[str]]) -> str:
    """The named variations of each group, for ``--help``."""
    listed = (f"{group}: {', '.join(names)}" for group, names in options.items())
    return "\n".join("\n".join(textwrap.wrap(line, HELP_WIDTH, subsequent_indent="  ")) for line in listed)


def one_sentence(error: BaseException, composing: bool = False) -> str:
    """The error as one sentence.

    Args:
        composing: the error was raised while Hydra composed the config.
    """
    known = _expected(error, composing)
    return readable(str(known) if known is not None else f"Internal error: {type(error).__name__}: {error}")


def show_error(error: BaseException, debug: bool, composing: bool = False) -> int:
    """Print the error as one sentence on stderr, after its traceback if ``debug``, and return the exit code."""
    known = _expected(error, composing)
    if isinstance(known, OtherRankError) and known.silent:
        return known.exit_code
    if composing and isinstance(error, BrokenPipeError) and "--multirun" not in sys.argv:
        # Only output such as help was lost, and its reader ended on purpose, as `head` does.
        return 1
    if debug or known is None:
        traceback.print_exception(error)
    print(f"error: {one_sentence(error, composing)}", file=sys.stderr)
    return int(getattr(known, "exit_code", 1))


def _expected(error: BaseException, composing: bool) -> BaseException | None:
    """The error to show as a sentence; None for an internal error."""
    if hasattr(error, "exit_code"):
        return error
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout again when it exits, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        how = "the same command continues it" if composing else "continue with resume=auto"
        return Li2Error(f"The run stopped because nobody reads its output any more; {how}.")
    if is_memory_full(error):
        return InputError(
            "The memory is too small for this run; lower network.width, or set data.batch_size with a larger "
            "data.evaluate_every_n_steps."
        )
    return _composition_error(error) if composing else None


def _composition_error(error: BaseException) -> InputError:
    """The sentence for an error that Hydra raised about an override."""
    text = str(error)
    cause = error.__cause__
    if match := UNKNOWN_OVERRIDE.search(text):
        if isinstance(cause, OmegaConfBaseException) and not is_unknown_key(cause):
            return explain(cause)
        return unknown_key(getattr(cause, "full_key", None) or match.group(1))
    if match := SEVERAL_VALUES.search(text):
        key, _, value = match.group(1).lstrip("+").partition("=")
        return InputError(
            f"{key}={value} names several values; add -m for a sweep, or write a list as {key}=[{value}]."
        )
    if match := UNKNOWN_CHOICE.search(text):
        group, choice = match.groups()
        options = KNOWN_CHOICE.findall(text)
        if group == "hydra/launcher" and choice in LAUNCHERS:
            return InputError(f"{group}={choice} is not installed; install it with pip install 'li2-lightning[sweep]'.")
        return InputError(f"Unknown {group} {choice!r}; known are {', '.join(options)}.{nearest(choice, options)}")
    if is_refused_value(error) and isinstance(cause, OmegaConfBaseException):
        return explain(cause)
    if (unreadable := unreadable_override(error)) is not None:
        argument = unreadable.lstrip("+")
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
    """The string quoted, so that Hydra's override grammar reads it verbatim."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
