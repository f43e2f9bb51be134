"""The one error of this package: what was wrong, what is allowed, the nearest match, in one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable


class OptimizerError(ValueError):
    """An optimizer, scheduler or hyperparameter that cannot be what the user asked for."""

    exit_code = 2


def nearest(word: str, options: Iterable[str]) -> str:
    """The hint ``" Did you mean 'x'?"`` with the option that ``word`` was meant to be, or nothing where none is near.

    Near is what some slips make of an option, one for every four letters, in each part of a dotted key; else the only
    option that begins with ``word``, or that shares its whole words: "warmup" of "linear_warmup", "width" of
    "network.width", "cosine" in "cosine_annealing".
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
    """How many slips of the hand lie between them; infinite where some part has more than one for four letters."""
    mine, its = (re.split(r"[./]", _plain(name)) for name in (word, option))
    if len(mine) != len(its):
        return math.inf
    distances = [_distance(a, b) for a, b in zip(mine, its, strict=True)]
    allowed = [(max(len(a), len(b)) + 1) // 4 for a, b in zip(mine, its, strict=True)]
    return sum(distances) if all(d <= most for d, most in zip(distances, allowed, strict=True)) else math.inf


def _distance(a: str, b: str) -> int:
    """The fewest letters to add, drop, or replace, and neighbours to swap, that make ``b`` of ``a``."""
    before, last = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def reason(error: BaseException) -> str:
    """A foreign exception as part of a sentence: its message on one line, with its type unless it is ours."""
    message = " ".join(str(error).split()).rstrip(".")
    return message if isinstance(error, OptimizerError) else f"{type(error).__name__}: {message}"


def check_choice(what: str, value: object, options: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``options``: lists them and points at the nearest."""
    known = list(options)
    if value not in known:
        raise OptimizerError(f"{what} {value!r} is unknown; known are {', '.join(known)}.{nearest(str(value), known)}")
