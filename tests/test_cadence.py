"""Cadences: which rows are due, on a linear and on a log scale."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Any

import pytest

from li2_lightning.cadence import cadence, is_cadence, is_due
from li2_lightning.errors import InputError


def due(every: int | str, steps: range) -> list[int]:
    rows = list(steps)
    return [step for last, step in zip([-1, *rows], rows, strict=False) if is_due(every, step, last)]


@pytest.mark.parametrize(
    ("every", "rows"),
    [
        (1, [*range(101)]),
        (30, [0, 30, 60, 90]),
        ("log", [0, 1, 2, 3, 4, 6, 7, 8, 10, 13, 16, 20, 26, 32, 40, 51, 64, 80, 100]),
        ("log10", [0, 1, 2, 3, 4, 6, 7, 8, 10, 13, 16, 20, 26, 32, 40, 51, 64, 80, 100]),
        ("log3", [0, 1, 3, 5, 10, 22, 47, 100]),
        ("log1", [0, 1, 10, 100]),
    ],
)
def test_due_is_row_0_and_the_first_row_at_or_after_each_mark(every: int | str, rows: list[int]) -> None:
    assert due(every, range(101)) == rows


@pytest.mark.parametrize("number", [1, 7, 10, 20, 100])
def test_the_marks_of_a_log_scale_are_the_powers_of_ten_to_k_over_n(number: int) -> None:
    """In 28 digits; where N divides k, the power is an integer."""
    powers = [
        int((Decimal(10) ** (Decimal(k) / number)).to_integral_value(ROUND_CEILING))
        if k % number
        else 10 ** (k // number)
        for k in range(4 * number + 1)
    ]
    assert due(f"log{number}", range(10001)) == sorted({0, *powers})


def test_a_decade_has_n_rows_once_the_marks_are_further_apart_than_the_rows() -> None:
    assert len([row for row in due("log20", range(10001)) if 100 < row <= 1000]) == 20
    assert len([row for row in due("log20", range(10001)) if 1000 < row <= 10000]) == 20


def test_rows_that_lie_apart_are_due_at_or_after_each_mark_once() -> None:
    assert due("log3", range(0, 101, 7)) == [0, 7, 14, 28, 49]
    assert due("log", range(0, 101, 25)) == [0, 25, 50, 75, 100]
    assert due(10, range(0, 101, 25)) == [0, 25, 50, 75, 100]


@pytest.mark.parametrize(
    "value", [0, -1, 1.5, True, None, "3", "", "log0", "log05", "log-1", "log1.5", "LOG", "log:20"]
)
def test_what_is_no_cadence_is_refused_with_the_spellings(value: Any) -> None:
    assert not is_cadence(value)
    with pytest.raises(InputError, match=r"^here=.* does not fit; it is an integer .*, log \(10 rows .* logN \(N rows"):
        cadence("here", value)
