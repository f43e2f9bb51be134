"""Prodigy against its definition in NumPy, and what its estimate of the distance is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from optimizers import OptimizerError
from optimizers.prodigy import Prodigy
from optimizers.registry import build

torch.manual_seed(0)
START = [torch.randn(4, 6, dtype=torch.complex128), torch.randn(3, dtype=torch.complex128)]
GRADIENTS = [[torch.randn_like(x) for x in START] for _ in range(12)]


def reference(start: list[np.ndarray], gradients: list[list[np.ndarray]], lr: float, decay: float) -> list[np.ndarray]:
    """All tensors as one vector; β = .8, .96, d₀ = .01."""
    x = x0 = np.concatenate([part.ravel() for part in start])
    m, v, s, r, d, beta3 = 0 * x, np.zeros(x.shape), 0 * x, 0.0, 0.01, math.sqrt(0.96)
    for parts in gradients:
        g = np.concatenate([part.ravel() for part in parts])
        m = 0.8 * m + 0.2 * d * g
        v = 0.96 * v + 0.04 * d**2 * abs(g) ** 2
        r = beta3 * r + (1 - beta3) * lr * d**2 * (g.conj() @ (x0 - x)).real
        s = beta3 * s + (1 - beta3) * lr * d**2 * g
        x = x - lr * d * (m / (v**0.5 + d * 1e-8) + decay * x)
        d = max(d, r / abs(s).sum())
    assert d > 0.01, "the estimate has grown"
    return np.split(x, [start[0].size])


@pytest.mark.parametrize("is_complex", [False, True])
def test_it_is_the_algorithm_of_the_paper(is_complex: bool) -> None:
    # A gradient that keeps its sign, so that the estimate grows.
    gradients = [[g.abs().to(g.dtype) + 1 for g in each] for each in GRADIENTS]
    kind = (lambda x: x) if is_complex else (lambda x: x.real.clone())
    weights = [Parameter(kind(x).clone()) for x in START]
    optimizer = Prodigy(weights, lr=0.7, betas=(0.8, 0.96), weight_decay=0.2, first_distance=0.01)
    for each in gradients:
        for weight, gradient in zip(weights, each, strict=True):
            weight.grad = kind(gradient)
        optimizer.step()
    expected = reference([kind(x).numpy() for x in START], [[kind(g).numpy() for g in e] for e in gradients], 0.7, 0.2)
    for weight, exact in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight.detach().numpy().ravel(), exact, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_it_finds_the_distance_at_any_scale_without_tuning(scale: float) -> None:
    """|w − a| from 0: d stays below |a|, and comes near it."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Prodigy([weight])
    for _ in range(300):
        optimizer.zero_grad()
        (weight - scale).abs().sum().backward()
        optimizer.step()
    assert 0.1 * scale < optimizer.param_groups[0]["distance"] <= scale
    assert weight.item() == pytest.approx(scale, rel=0.5)


@pytest.mark.parametrize("given", [{"lr": -1}, {"betas": [0.9, 1.0]}, {"eps": 0.0}, {"first_distance": 0.0}])
def test_what_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(OptimizerError, match=rf"{next(iter(given))} of prodigy must be"):
        build("prodigy", [Parameter(START[0].clone())], given, role="hidden")
