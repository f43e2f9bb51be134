"""The ways a run can end other than well, each with the exit code that ``train.py`` returns for it."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class Li2Error(Exception):
    """Base of every error that is shown as one sentence instead of a traceback."""

    exit_code = 1


class InputError(Li2Error, ValueError):
    """The user asked for something that cannot be: a bad key, value, name, file or directory."""

    exit_code = 2


class DamagedError(InputError):
    """A file is not what was written: truncated, or altered."""


class StorageError(Li2Error):
    """The run directory cannot be written any more: the disk is full, or read-only, or the directory is gone."""

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


class OtherRankError(Li2Error):
    """Of several ranks another one failed; ``exit_code`` is that one's.

    Args:
        silent: the first rank says it, so this one does not.
    """

    def __init__(self, sentence: str, exit_code: int, silent: bool = False) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.silent = silent


def readable(text: str) -> str:
    """``text`` on one line: what a terminal would act on, instead of show, is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def nearest(word: str, options: Iterable[str]) -> str:
    """The hint ``" Did you mean 'x'?"`` with the option most like ``word``, or nothing where none is close."""
    matches = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def unknown(kind: str, word: str, options: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not among ``options``: lists them and points at the nearest."""
    known = sorted(options)
    return InputError(f"Unknown {kind} {word!r}; known are {', '.join(known)}.{nearest(word, known)}")
