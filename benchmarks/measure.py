"""Medians over rounds in which contenders take turns, so that a change of the machine's speed affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Figure:
    """The median, smallest and largest value over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        """Summarize one value for each round."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


# From a number of steps to the seconds of each.
Contender = Callable[[int], list[float]]


def in_turns(
    contenders: Mapping[str, Contender],
    rounds: int,
    steps: int,
    average: Callable[[list[float]], float] = statistics.median,
) -> dict[str, list[float]]:
    """Average seconds of a step of each contender in each round; every round begins with another contender.

    The median leaves out what only a few steps do; ``statistics.fmean`` includes it.
    """
    averages: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # The first steps fill caches and allocate the optimizer's state.
            averages[name].append(average(contenders[name](steps + 3)[3:]))
    return averages


def ratios(times: Mapping[str, list[float]], name: str, to: str) -> Figure:
    """``name`` over ``to``, round by round."""
    return Figure.of([one / other for one, other in zip(times[name], times[to], strict=True)])


def loop_times(loop: Iterator[None], steps: int) -> list[float]:
    """Seconds of each of the next steps of a loop."""
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        next(loop)
        times.append(time.perf_counter() - start)
    return times


def flop_rate(
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul, repetitions: int = 9, size: int = 2048
) -> float:
    """Highest rate of a square float32 product on this machine, in floating point operations a second."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = min(loop_times(iter((product(left, right), None)[1] for _ in range(repetitions)), repetitions))
    return 2 * size**3 / best
