"""The one error of this package: what was wrong, what is allowed, the nearest match, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OptimizerError(ValueError):
    """An optimizer, scheduler or hyperparameter that cannot be what the user asked for."""

    exit_code = 2


def nearest(word: str, options: Iterable[str]) -> str:
    """The hint ``" Did you mean 'x'?"`` with the option most like ``word``, or nothing if none is close."""
    matches = difflib.get_close_matches(word.lower(), list(options), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def reason(error: BaseException) -> str:
    """A foreign exception as part of a sentence: its message on one line, with its type unless it is ours."""
    message = " ".join(str(error).split()).rstrip(".")
    return message if isinstance(error, OptimizerError) else f"{type(error).__name__}: {message}"


def check_choice(what: str, value: object, options: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``options``: lists them and points at the nearest."""
    known = list(options)
    if value not in known:
        raise OptimizerError(f"{what} {value!r} is unknown; known are {', '.join(known)}.{nearest(str(value), known)}")
