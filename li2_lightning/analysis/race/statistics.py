"""Statistics of a race, in NumPy: intervals, tests of pairs, groups, performance profiles.

A value is the step at which a seed arrived, ∞ for a seed that never did. No function interpolates between two values,
one of which may be ∞.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

RESAMPLES, COVERAGE = 2000, 0.95
"""Bootstrap samples, and the share of them in an interval."""

MOST_RATIO = 4.0
"""The ratio to the fastest entrant from which on a performance profile does not count, as in AlgoPerf."""


def resamples(count: int, seed: int = 0) -> Indices:
    """`RESAMPLES` × ``count`` indices, drawn with replacement from 0 … ``count`` − 1."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def interval(samples: Values) -> tuple[Values, Values]:
    """The lower and the upper end of the middle `COVERAGE` of the samples, which lie along the first axis."""
    ordered = np.sort(samples, axis=0)
    outside = int((1 - COVERAGE) / 2 * len(ordered))
    return ordered[outside], ordered[-1 - outside]


def ratio(a: Values, b: Values) -> Values:
    """a/b; 1 where both are ∞."""
    never = np.isinf(a) & np.isinf(b)
    return np.where(never, 1.0, np.divide(a, np.where(never, 1.0, b)))


def signed_rank(differences: Values) -> float:
    """Wilcoxon's signed-rank test: the exact two-sided probability under a distribution that is symmetric about 0.

    Differences of 0 are left out, equal sizes share the mean of their ranks, and ±∞ has the largest size. Without a
    difference the result is 1.
    """
    left = differences[differences != 0]
    if not len(left):
        return 1.0
    _, inverse, counts = np.unique(np.abs(left), return_inverse=True, return_counts=True)
    # Twice the rank, which is a whole number.
    ends = np.cumsum(counts)
    ranks = (2 * ends - counts + 1)[inverse]
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in ranks:
        moved = np.zeros_like(chances)
        moved[rank:] = chances[:-rank]
        chances = (chances + moved) / 2
    observed = int(ranks[left > 0].sum())
    return float(min(1.0, 2 * min(chances[: observed + 1].sum(), chances[observed:].sum())))


def holm(probabilities: Sequence[float]) -> Values:
    """The probabilities of several tests, corrected by Holm: each at most α with chance α that any is wrong."""
    p = np.asarray(probabilities, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def groups(differ: npt.NDArray[np.bool_]) -> list[str]:
    """Letters for each entrant: two that share a letter are not known to differ, two that share none are.

    Args:
        differ: entrants × entrants, in the order of the letters.
    """
    found = [frozenset(range(len(differ)))]
    for i, j in np.argwhere(np.triu(differ)).tolist():
        split = [part for group in found for part in ((group - {i}, group - {j}) if {i, j} <= group else (group,))]
        found = [group for group in dict.fromkeys(split) if not any(group < other for other in split)]
    ordered = sorted(found, key=sorted)
    return ["".join(_letter(place) for place, group in enumerate(ordered) if i in group) for i in range(len(differ))]


def _letter(place: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[place % len(letters)] + "′" * (place // len(letters))


def to_fastest(times: Values) -> Values:
    """Each time over that of the fastest entrant (first axis); ∞ where nobody arrived."""
    fastest = times.min(axis=0)
    return np.where(np.isinf(fastest), np.inf, np.divide(times, np.where(np.isinf(fastest), 1.0, fastest)))


def scores(ratios: Values) -> Values:
    """∫ρ(τ)dτ/(τ₁ − 1) from 1 to τ₁ = `MOST_RATIO`, ρ(τ) the share of workloads (second axis) with a ratio ≤ τ.

    1 is the fastest on every workload, 0 at least τ₁ times as slow as the fastest on every workload. Source: E. Dolan
    and J. Moré (2002) for profiles; G. Dahl et al., "Benchmarking neural network training algorithms",
    arXiv:2306.07179, for the integral.
    """
    shares: Values = np.clip((MOST_RATIO - ratios) / (MOST_RATIO - 1), 0.0, 1.0)
    return np.asarray(shares.mean(axis=1))
