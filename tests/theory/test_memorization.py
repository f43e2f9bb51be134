"""Theorem 5: focused and spreading features, against ascent by autograd's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from li2_lightning import groups
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.theory.energy import ascend
from li2_lightning.theory.memorization import (
    curvature_ratio,
    focused_maximizer,
    memorization_energy,
    memorization_gradient,
    spreading_maximizer,
)
from li2_lightning.verification.findings import draw

GROUP = groups.symmetric(3)
PARTNERS = torch.tensor(GROUP.table[GROUP.inverses, 4])
P = torch.tensor([0.1, 0.25, 0.05, 0.3, 0.18, 0.12], dtype=torch.float64)


def climb(start: Tensor, name: str) -> tuple[Tensor, Tensor]:
    found = ascend(start, lambda w: (
        memorization_energy(w, P, PARTNERS, ACTIVATIONS[name]), memorization_gradient(w, P, PARTNERS, ACTIVATIONS[name])
    ), max_steps=5000)  # fmt: skip
    return found.weights, found.energies


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_energy_and_its_gradient_are_those_of_the_pairs(name: str) -> None:
    """Pair by pair, and by autograd."""
    w = draw(12, 5).requires_grad_()
    total = sum(P[g] * ACTIVATIONS[name](w[g] + w[6 + x]) for g in range(6) for x in range(6) if GROUP.table[g, x] == 4)
    assert isinstance(total, Tensor)
    E = 0.5 * total.square()
    torch.testing.assert_close(memorization_energy(w.detach(), P, PARTNERS, ACTIVATIONS[name]), E.detach())
    (gradient,) = torch.autograd.grad(E.sum(), w)
    torch.testing.assert_close(memorization_gradient(w.detach(), P, PARTNERS, ACTIVATIONS[name]), gradient)


def test_for_the_square_every_start_ends_focused_on_the_likeliest_pair() -> None:
    weights, energies = climb(draw(12, 40), "square")
    expected = focused_maximizer(P, PARTNERS)
    assert expected.norm() == pytest.approx(1)
    signs = torch.sign(weights[3])
    torch.testing.assert_close(weights * signs, expected[:, None].expand(-1, 40), rtol=0, atol=1e-6)
    torch.testing.assert_close(energies, torch.full_like(energies, 2 * 0.3**2), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["relu", "silu", "tanh", "sigmoid"])
def test_where_the_ratio_falls_positive_starts_end_spread_over_all_pairs(name: str) -> None:
    weights, energies = climb(draw(12, 20).abs(), name)
    expected = spreading_maximizer(P, PARTNERS, ACTIVATIONS[name])
    assert expected.norm().item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(weights, expected[:, None].expand(-1, 20), rtol=0, atol=1e-7)
    best = memorization_energy(expected[:, None], P, PARTNERS, ACTIVATIONS[name])
    torch.testing.assert_close(energies, best.expand(20), rtol=1e-9, atol=0)
    focused = memorization_energy(focused_maximizer(P, PARTNERS)[:, None], P, PARTNERS, ACTIVATIONS[name])
    assert best > 1.02 * focused


def test_relu_has_a_closed_form() -> None:
    w = spreading_maximizer(P, PARTNERS, ACTIVATIONS["relu"])
    torch.testing.assert_close(w[:6], P / P.norm() / 2**0.5, rtol=0, atol=1e-9)
    assert memorization_energy(w[:, None], P, PARTNERS, ACTIVATIONS["relu"]).item() == pytest.approx(P.square().sum())


def test_gaussian_starts_of_relu_leave_dead_units() -> None:
    weights, _ = climb(draw(12, 40), "relu")
    z = weights[:6] + weights[6:][PARTNERS]
    assert (z <= 0).any(dim=0).double().mean() > 0.5


@pytest.mark.parametrize("name", ["square", "relu", "silu", "tanh", "sigmoid"])
def test_which_activations_focus_and_which_spread(name: str) -> None:
    slopes = curvature_ratio(torch.linspace(0.1, 1.4, 50, dtype=torch.float64), ACTIVATIONS[name]).diff()
    assert (slopes.abs() < 1e-12).all() if name == "square" else (slopes < 0).all()


def test_centred_over_a_single_label_nothing_is_left() -> None:
    Y = torch.eye(6, dtype=torch.float64)[torch.full((6,), 4)]
    assert not (Y - Y.mean(dim=0)).any()
