"""Laws fitted to the outcomes of runs: where half of the seeds succeed, and power laws, with bootstrap intervals.

An observation is a run. Runs of one task and one seed share their initial weights and their order of rows, so a
bootstrap draws seeds, each with all its runs, for every task by itself. Intervals are the central 95 % of 1,000 draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DRAWS = 1000
"""Draws of a bootstrap."""
MOST_ITERATIONS, TOLERANCE, LONGEST_STEP = 200, 1e-8, 2.0


@dataclass(frozen=True)
class Estimate:
    """A number with the interval that holds 95 % of its bootstrap values."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Law:
    """Whether u½, the u with which half of the seeds succeed, is the same for every size.

    Attributes:
        constant: u½ at the geometric mean of the sizes of all runs; u½ of every size if it is the same.
        drift: d with u½ ∝ size^d; a law holds where the interval contains 0.
    """

    constant: Estimate
    drift: Estimate


def logistic_fit(X: Array, success: Array, weights: Array) -> Array:
    """Coefficients β of P(success) = 1/(1 + exp(−Xβ)) by Firth's penalized likelihood, …×columns.

    The penalty ½ ln det XᵀWX keeps β finite where x separates successes from failures, as it does near a sharp
    boundary; the likelihood alone has no maximum there. Source: D. Firth, Biometrika 80 (1993) 27–38.

    Args:
        X: observations × columns.
        success: 0 or 1 for each observation.
        weights: how often each observation counts, …×observations; the fits of all leading places are made together.
    """
    scale = np.sqrt((X**2).mean(axis=0))
    # Observations of equal rows are one: runs that differ only in their seeds.
    X, cell = np.unique(X / scale, axis=0, return_inverse=True)
    members = np.eye(len(X))[cell]
    count, wins = weights @ members, (weights * success) @ members
    beta = np.zeros((*weights.shape[:-1], X.shape[1]))
    for _ in range(MOST_ITERATIONS):
        p = 1 / (1 + np.exp(-np.clip(beta @ X.T, -40, 40)))
        W = count * p * (1 - p)
        inverse = np.linalg.pinv((X.T * W[..., None, :]) @ X, hermitian=True)
        leverage = W * ((X @ inverse) * X).sum(axis=-1)
        score = (wins - count * p + leverage * (0.5 - p)) @ X
        step = (inverse @ score[..., None])[..., 0]
        # A full step of Newton's method may overshoot from the flat start.
        longest = np.abs(step).max(axis=-1, keepdims=True)
        beta += step * np.minimum(1, LONGEST_STEP / np.maximum(longest, TOLERANCE))
        if longest.max() < TOLERANCE:
            break
    result: Array = beta / scale
    return result


def half_points(
    u: Sequence[float], success: Sequence[bool], tasks: Sequence[str], seeds: Sequence[int]
) -> dict[str, Estimate]:
    """u½ of each task: P(success) = ½ in a logistic fit over ln u with one slope for all tasks.

    Where every failure of a task lies below every success, each draw of seeds gives the same u½, which only says that
    it is between the two; so they are the interval.

    Args:
        u, success, tasks, seeds: one entry a run; ``u`` is positive.
    """
    names = list(dict.fromkeys(tasks))
    x = np.log(u)
    X = np.column_stack([x - x.mean(), *[[float(task == name) for task in tasks] for name in names]])
    y = np.array(success, dtype=float)

    def fit(weights: Array) -> Array:
        beta = logistic_fit(X, y, weights)
        found: Array = np.exp(x.mean() - beta[..., 1:] / beta[..., :1])
        return found

    halves = dict(zip(names, bootstrap(fit, tasks, seeds), strict=True))
    for name, half in halves.items():
        own = [(value, done) for value, done, task in zip(u, success, tasks, strict=True) if task == name]
        below = max((value for value, done in own if not done), default=math.inf)
        above = min((value for value, done in own if done), default=0.0)
        if below < above:
            halves[name] = Estimate(half.value, below, above)
    return halves


def law(u: Sequence[float], sizes: Sequence[float], success: Sequence[bool], seeds: Sequence[int]) -> Law:
    """The `Law` of the quantity u over tasks of different sizes; a task is its size.

    Args:
        u, sizes, success, seeds: one entry a run; ``u`` and ``sizes`` are positive.
    """
    x, z = np.log(u), np.log(sizes)
    X = np.column_stack([x - x.mean(), np.ones_like(x), z - z.mean()])
    y = np.array(success, dtype=float)

    def fit(weights: Array) -> Array:
        slope, level, drift = np.moveaxis(logistic_fit(X, y, weights), -1, 0)
        return np.stack([np.exp(x.mean() - level / slope), -drift / slope], axis=-1)

    return Law(*bootstrap(fit, sizes, seeds))


def exponent(x: Sequence[float], y: Sequence[float], tasks: Sequence[Hashable], seeds: Sequence[int]) -> Estimate:
    """The exponent b of y ∝ x^b, by least squares of ln y over ln x.

    Args:
        x, y, tasks, seeds: one entry a run; ``x`` and ``y`` are positive.
    """
    a, b = np.log(x), np.log(y)

    def fit(weights: Array) -> Array:
        total = weights.sum(axis=-1, keepdims=True)
        weighted = weights * (a - (weights @ a)[..., None] / total)
        found: Array = (weighted @ b / (weighted @ a))[..., None]
        return found

    return bootstrap(fit, tasks, seeds)[0]


def bootstrap(fit: Callable[[Array], Array], tasks: Sequence[Hashable], seeds: Sequence[int]) -> list[Estimate]:
    """Each number of ``fit`` with its interval.

    Args:
        fit: makes numbers, …×numbers, of the weights of the runs, …×runs.
        tasks, seeds: of each run.
    """
    random = np.random.default_rng(0)
    strata: dict[Hashable, dict[int, list[int]]] = {}
    for place, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
        strata.setdefault(task, {}).setdefault(seed, []).append(place)
    weights = np.ones((DRAWS, len(seeds)))
    for members in strata.values():
        counts = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=DRAWS)
        for count, places in zip(counts.T, members.values(), strict=True):
            weights[:, places] = count[:, None]
    values = fit(np.ones(len(seeds)))
    low, high = np.quantile(fit(weights), [0.025, 0.975], axis=0)
    return [Estimate(*map(float, each)) for each in zip(values, low, high, strict=True)]
