"""Scion: each step is the best of its length in a norm that NumPy computes from its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optimizers import OptimizerError
from optimizers.muon.orthogonalize import orthogonalize
from optimizers.registry import build
from optimizers.scion import Scion

torch.manual_seed(0)
W0, G, G2 = torch.randn(3, 4, 6, dtype=torch.float64)
OUTPUT_INPUT = {"orientation": "output_input"}


def moved(weight: Tensor, *gradients: Tensor, layout: dict[str, object] | None = None, **options: object) -> Tensor:
    """How far the updates moved the weight."""
    parameter = Parameter(weight.clone())
    optimizer = Scion([parameter], **{"lr": 1.0, "momentum": 0.0, **options})
    if layout is not None:
        optimizer.param_groups[0]["layouts"] = [layout]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach() - weight


def operator_norm(step: np.ndarray, norm: str) -> float:
    """The largest change of the output x @ step over the inputs of the norm, by its definition."""
    inputs, outputs = step.shape
    if norm == "spectral":
        return float(np.linalg.svd(step)[1][0] * (inputs / outputs) ** 0.5)
    if norm == "node":
        return float(inputs**0.5 * np.linalg.norm(step, axis=0).max())
    corners = np.array(list(itertools.product((-1, 1), repeat=inputs)))
    return float(abs(corners @ step).max())


@pytest.mark.parametrize("norm", ["spectral", "sign", "node"])
def test_a_step_has_length_one_and_none_of_that_length_leads_further_down(norm: str) -> None:
    """With the exact polar factor; the sum of entries bounds the norm of sign, as in the source."""
    step = moved(W0, G, norm=norm, steps=30).numpy()
    downhill = -(G.numpy() * step).sum()
    assert operator_norm(step, norm) == pytest.approx(1, abs=0.25 if norm == "spectral" else 1e-9)
    for seed in range(200):
        other = np.random.default_rng(seed).standard_normal(G.shape)
        if norm == "sign":
            # The ball of the source: every entry at most 1/I.
            other /= abs(other).max() * len(other)
        else:
            other /= operator_norm(other, norm)
        assert -(G.numpy() * other).sum() < downhill


@pytest.mark.parametrize("norm", ["spectral", "sign", "node"])
def test_the_declared_orientation_decides(norm: str) -> None:
    torch.testing.assert_close(moved(W0.T, G.T, norm=norm, layout=OUTPUT_INPUT), moved(W0, G, norm=norm).T)


def test_the_matrices_of_a_parameter_are_their_own() -> None:
    halves = [moved(half, g) for half, g in zip(W0.chunk(2), G.chunk(2), strict=True)]
    torch.testing.assert_close(moved(W0, G, layout={"matrices": 2}), torch.cat(halves))


def test_momentum_and_decay_by_hand() -> None:
    d = 0.3 * G
    first = 0.98 * W0 - 0.1 * 1.5**0.5 * orthogonalize(d)
    d = 0.7 * d + 0.3 * G2
    second = 0.98 * first - 0.1 * 1.5**0.5 * orthogonalize(d)
    found = W0 + moved(W0, G, G2, lr=0.1, momentum=0.7, weight_decay=0.2)
    torch.testing.assert_close(found, second)


def test_weights_end_in_the_ball_of_the_decay() -> None:
    """Radius ρ = 1/λ, whatever the gradients are."""
    weight = Parameter(100 * W0)
    optimizer = Scion([weight], lr=0.1, weight_decay=0.5, norm="sign")
    for _ in range(400):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    assert weight.abs().max().item() <= 1 / 0.5 / 4 * (1 + 1e-6)


@pytest.mark.parametrize("norm", ["spectral", "sign"])
def test_a_vector(norm: str) -> None:
    g = torch.tensor([3.0, -4.0])
    expected = g.sgn() if norm == "sign" else g / (12.5**0.5)
    torch.testing.assert_close(moved(torch.zeros(2), g, norm=norm), -expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"norm": "signs"}, "Did you mean 'sign'"),
        ({"momentum": 1.0}, "momentum of scion must be"),
        ({"lr": -1}, "lr of scion must be"),
    ],
)
def test_what_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        build("scion", [Parameter(W0.clone())], given, role="hidden")
