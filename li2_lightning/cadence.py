"""Which rows are due: every n steps, or N rows a decade.

A cadence is a positive integer n, whose marks are the multiples of n; or ``logN``, whose marks are 10^(k/N), k = 0, 1,
2, …: N marks a decade; or ``log``, which is ``log10``. Due are row 0, the first row at or after each mark, and the last
row. With a row at every step, ``log`` gives the rows 0 1 2 3 4 6 7 8 10 13 16 20 26 32 40 51 64 80 100 126 …
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from li2_lightning.errors import InputError

ALLOWED = "an integer of at least 1, log (10 rows a decade), or logN (N rows a decade, as in log20)"
_LOG = re.compile(r"log([1-9]\d{0,3})?")


@lru_cache(maxsize=256)
def marks(cadence: int | str, step: int) -> int:
    """The number of marks of ``cadence`` in 1 … ``step``."""
    if isinstance(cadence, int):
        return step // cadence
    if step < 1:
        return 0
    match = _LOG.fullmatch(cadence)
    assert match is not None
    # A power of ten has an exact logarithm, and no other power 10^(k/N) is an integer, so no mark is lost to rounding.
    return math.floor(int(match[1] or 10) * math.log10(step)) + 1


def is_due(cadence: int | str, step: int, last: int) -> bool:
    """Whether row ``step`` is due by the cadence alone, if ``last`` is the row before it (-1: there is none)."""
    return last < 0 or marks(cadence, step) > marks(cadence, last)


def is_marked(cadence: int | str, step: int) -> bool:
    """Whether row ``step`` is due if there is a row at every step."""
    return is_due(cadence, step, step - 1)


def is_cadence(value: Any) -> bool:
    """Whether ``value`` is a cadence."""
    if isinstance(value, str):
        return _LOG.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def cadence(key: str, value: Any) -> int | str:
    """``value`` if it is a cadence; else an `InputError` that names ``key``."""
    if not is_cadence(value):
        raise InputError(f"{key}={value!r} does not fit; it is {ALLOWED}.")
    checked: int | str = value
    return checked


def spelled_once(value: Any) -> Any:
    """``log`` for ``log10``, and any other value as it is: equal cadences are equal values, with one hash."""
    return "log" if value == "log10" else value
