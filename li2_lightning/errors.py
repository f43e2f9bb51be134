"""The errors that a user sees, each with the exit code of ``li2``, and the wording of their messages."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Collection, Iterable


class Li2Error(Exception):
    """Base of every error that is shown as one sentence instead of a traceback."""

    exit_code = 1


class InputError(Li2Error, ValueError):
    """A key, value, name, file or directory of the user does not fit."""

    exit_code = 2


class BusyError(InputError):
    """Another process writes the run directory."""


class DamagedError(InputError):
    """A file was truncated or altered after it was written."""


class StorageError(Li2Error):
    """The run directory cannot be written any more: the disk is full or read-only, or the directory was removed."""

    exit_code = 2


class DivergenceError(Li2Error):
    """Training produced a value that is not finite."""

    exit_code = 3


class Interrupted(Li2Error):
    """A signal asked the run to stop; its state was saved first."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signal.Signals(signum)
        self.exit_code = 128 + signum

    @classmethod
    def by(cls, signum: int) -> Interrupted:
        """The error of a run that stops in the middle of its steps."""
        return cls(signum, f"Stopped by {signal.Signals(signum).name}.")


class OtherRankError(Li2Error):
    """Another rank of the run failed; this process ends with ``exit_code``.

    Args:
        silent: the first rank prints the error, so this rank does not.
    """

    def __init__(self, sentence: str, exit_code: int, silent: bool = False) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.silent = silent


def readable(text: str) -> str:
    """``text`` on one line, with every control character escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def message(error: Exception) -> str:
    """The message of a library's exception on one line, without the last full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def nearest(word: str, options: Iterable[str]) -> str:
    """The hint ``" Did you mean 'x'?"`` with the option nearest to ``word``; empty where no option is near.

    An option is near if each part of the dotted key differs by at most one typing error for every four letters. Failing
    that, the only option that begins with ``word`` or shares whole words with it is near: "warmup" finds
    "linear_warmup", "width" finds "network.width", "cosine_annealing" finds "cosine".
    """
    known = list(options)
    slips = {option: _slips(word, option) for option in known}
    if found := [option for option in known if slips[option] < math.inf]:
        return f" Did you mean {min(found, key=slips.__getitem__)!r}?"
    last = {option: option.rpartition(".")[2] for option in known}
    if found := [option for option in known if _slips(word, last[option]) < math.inf]:
        return f" Did you mean {found[0]!r}?"
    plain = _plain(word)
    found = [
        option
        for option in known
        if (len(plain) > 2 and _plain(option).startswith(plain))
        or _plain(option).endswith(f"_{plain}")
        or plain.startswith(f"{_plain(option)}_")
    ]
    return f" Did you mean {found[0]!r}?" if len(found) == 1 else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _slips(word: str, option: str) -> float:
    """The number of typing errors between two names; infinite if a part has more than one for every four letters."""
    mine, its = (re.split(r"[./]", _plain(name)) for name in (word, option))
    if len(mine) != len(its):
        return math.inf
    distances = [_distance(a, b) for a, b in zip(mine, its, strict=True)]
    allowed = [(max(len(a), len(b)) + 1) // 4 for a, b in zip(mine, its, strict=True)]
    return sum(distances) if all(d <= most for d, most in zip(distances, allowed, strict=True)) else math.inf


def _distance(a: str, b: str) -> int:
    """The edit distance from ``a`` to ``b``: letters added, dropped or replaced, and neighbours swapped."""
    before, last = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def unknown(kind: str, word: object, options: Iterable[str], listing: str | None = None) -> InputError:
    """An `InputError` for a name that is not among ``options``: lists them and points at the nearest.

    Args:
        listing: how the message lists the options; sorted and separated by commas where None.
    """
    known = sorted(options)
    listed = ", ".join(known) if listing is None else listing
    return InputError(f"Unknown {kind} {word!r}; known are {listed}.{nearest(str(word), known)}")


def check_choice(kind: str, word: object, options: Collection[str]) -> None:
    """Raise `unknown` unless ``word`` is one of ``options``."""
    if word not in options:
        raise unknown(kind, word, options)


def check_values(label: str, *checks: tuple[str, object, bool, str]) -> None:
    """Raise an `InputError` for the first value that does not hold.

    Args:
        label: the name of a value in the message, with ``{}`` for its key.
        checks: of each value its key, the value, whether it holds, and what is allowed.
    """
    for key, value, holds, allowed in checks:
        if not holds:
            raise InputError(f"{label.format(key)} must be {allowed}, not {value!r}.")


def reason(error: BaseException) -> str:
    """An exception as part of a sentence: its message on one line, with its type unless it is a `Li2Error`."""
    message = " ".join(str(error).split()).rstrip(".")
    return message if isinstance(error, Li2Error) else f"{type(error).__name__}: {message}"


def leave(*_: object) -> None:
    """Handle SIGINT during the imports, which take seconds and would print or swallow an exception."""
    sys.stderr.write("error: Stopped before training began.\n")
    os._exit(128 + signal.SIGINT)
