"""Boundaries and power laws are found where they were put, with intervals that hold them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from li2_lightning.analysis.scaling import Estimate, exponent, half_points, law, logistic_fit

SIZES, SEEDS = (11, 23, 47, 97), range(12)


def thresholds(power: float) -> tuple[list[float], list[float], list[bool], list[int]]:
    """u, size, success and seed of runs that succeed above 3·size^power, give or take 5 % for each seed."""
    draw = np.random.default_rng(1).standard_normal((len(SIZES), len(SEEDS)))
    rows = [
        (3 * size**power * ratio, float(size), ratio > math.exp(0.05 * draw[place, seed]), seed)
        for (place, size), ratio, seed in itertools.product(
            enumerate(SIZES), (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2), SEEDS
        )
    ]
    u, sizes, success, seeds = zip(*rows, strict=True)
    return list(u), list(sizes), list(success), list(seeds)


def contains(estimate: Estimate, value: float) -> bool:
    return estimate.low <= value <= estimate.high


def test_half_of_the_seeds_succeed_at_the_boundary() -> None:
    u, sizes, success, seeds = thresholds(0.8)
    found = half_points(u, success, [f"Z{size:g}" for size in sizes], seeds)
    for size in SIZES:
        assert found[f"Z{size}"].value == pytest.approx(3 * size**0.8, rel=0.05)
        assert found[f"Z{size}"].high / found[f"Z{size}"].low < 1.12


def test_a_law_holds_where_its_quantity_does_not_drift() -> None:
    u, sizes, success, seeds = thresholds(0.8)
    drifting = law(u, sizes, success, seeds)
    assert drifting.drift.value == pytest.approx(0.8, abs=0.03)
    middle = math.exp(np.log(sizes).mean())
    assert drifting.constant.value == pytest.approx(3 * middle**0.8, rel=0.03), "u½ of the mean size"
    right = law([value / size**0.8 for value, size in zip(u, sizes, strict=True)], sizes, success, seeds)
    assert right.drift.value == pytest.approx(0, abs=0.03)
    assert right.constant.value == pytest.approx(3, rel=0.03)
    wrong = law([value / size for value, size in zip(u, sizes, strict=True)], sizes, success, seeds).drift
    assert wrong.high < -0.15, "the negative control"


def test_a_jump_between_two_shares_has_them_as_its_interval() -> None:
    u, seeds = [0.2, 0.3, 0.4] * 4, [seed for seed in range(4) for _ in range(3)]
    (half,) = half_points(u, [value > 0.3 for value in u], ["Z23"] * 12, seeds).values()
    assert (half.low, half.high) == (0.3, 0.4)
    assert half.low < half.value < half.high
    (mixed,) = half_points(u, [value > 0.2 + 0.1 * (seed < 2) for value, seed in zip(u, seeds, strict=True)],
                           ["Z23"] * 12, seeds).values()  # fmt: skip
    assert mixed.low < 0.3 < mixed.high, "both shares are possible among the draws of seeds"


def test_the_fit_is_finite_where_x_separates_successes_from_failures() -> None:
    X = np.array([[-2.0, 1], [-1, 1], [1, 1], [2, 1]])
    slope, level = logistic_fit(X, np.array([0.0, 0, 1, 1]), np.ones(4))
    assert 0 < slope < 10
    assert level == pytest.approx(0, abs=1e-6)
    # The maximum of the penalized likelihood, by brute force.
    grid = np.linspace(0, 5, 5001)
    p = 1 / (1 + np.exp(-grid[:, None] * X[:, 0]))
    W = p * (1 - p)
    # Σ x W = 0, so the determinant is ΣW·Σx²W.
    penalty = 0.5 * np.log(W.sum(axis=1) * (W * X[:, 0] ** 2).sum(axis=1))
    likelihood = np.log(p[:, 2:]).sum(axis=1) + np.log(1 - p[:, :2]).sum(axis=1)
    assert slope == pytest.approx(grid[(likelihood + penalty).argmax()], abs=1e-3)


def test_a_weight_counts_an_observation_so_many_times() -> None:
    X, y = np.array([[-1.0, 1], [0.5, 1], [0.2, 1], [1.5, 1]]), np.array([0.0, 1, 0, 1])
    weights = np.array([[2.0, 1, 3, 0], [1, 1, 1, 1]])
    repeated = np.repeat(np.arange(4), weights[0].astype(int))
    together = logistic_fit(X, y, weights)
    np.testing.assert_allclose(together[0], logistic_fit(X[repeated], y[repeated], np.ones(6)), rtol=1e-6)
    np.testing.assert_allclose(together[1], logistic_fit(X, y, np.ones(4)), rtol=1e-6)


def test_an_exponent_and_its_interval() -> None:
    draw = np.random.default_rng(2)
    x = [1.0, 2, 4, 8] * 16
    seeds = [seed for seed in range(16) for _ in range(4)]
    y = [5 * value**-0.5 * math.exp(0.1 * draw.standard_normal()) for value in x]
    found = exponent(x, y, ["a task"] * len(x), seeds)
    assert contains(found, -0.5)
    assert found.high - found.low < 0.1
    assert str(Estimate(-0.5, -0.52, -0.475)) == "-0.5 (-0.52 to -0.475)"
    exact = exponent(x, [value**2 for value in x], ["a task"] * len(x), seeds)
    assert (exact.low, exact.value, exact.high) == pytest.approx((2, 2, 2))
