"""Stage II: the energy of Theorem 1, its gradient, and its maxima of Theorem 2 on small groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from li2_lightning import groups
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.theory.energy import energy, energy_gradient, energy_of_weights, unit_energy
from li2_lightning.verification.findings import draw

SQUARE = ACTIVATIONS["square"]
GROUPS = {"Z7": groups.cyclic(7), "Z8": groups.cyclic(8), "S3": groups.symmetric(3), "Q8": groups.quaternion(8)}


def all_pairs(group: FiniteGroup) -> tuple[Tensor, Tensor]:
    """X (M²×2M) and Ỹ (M²×M)."""
    M = group.order
    eye = torch.eye(M, dtype=torch.float64)
    X = torch.stack([torch.cat([eye[a], eye[b]]) for a in range(M) for b in range(M)])
    Y = torch.stack([eye[group.table[a, b]] for a in range(M) for b in range(M)])
    return X, Y - Y.mean(dim=0)


def some_data() -> tuple[Tensor, Tensor]:
    """Any data will do: inputs that are no one-hots, targets in no order."""
    Y = torch.eye(4, dtype=torch.float64)[torch.randint(4, (15,), generator=torch.Generator().manual_seed(3))]
    return draw(15, 6), Y - Y.mean(dim=0)


def test_energy_is_half_the_squared_length_of_its_column() -> None:
    products = draw(5, 3)
    assert energy(products)[1].item() == pytest.approx(0.5 * sum(v**2 for v in products[:, 1].tolist()), rel=1e-12)
    complex_products = draw(5, 3, dtype=torch.complex128)
    by_parts = energy(complex_products.real) + energy(complex_products.imag)
    torch.testing.assert_close(energy(complex_products), by_parts, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_energy_is_the_quadratic_form_of_the_label_kernel(name: str) -> None:
    """E = ½ fᵀ ỸỸᵀ f with f = σ(Xw), node by node, through the n×n kernel."""
    (X, Y), W = some_data(), draw(6, 3, seed=1)
    for j in range(3):
        f = ACTIVATIONS[name](X @ W[:, j])
        expected = (0.5 * f @ (Y @ Y.T) @ f).item()
        assert energy_of_weights(W, X, Y, ACTIVATIONS[name])[j].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_theorem_1_the_energy_gradient_is_autograds(name: str) -> None:
    (X, Y), W = some_data(), draw(6, 5, seed=1).requires_grad_()
    E = 0.5 * (Y.T @ ACTIVATIONS[name](X @ W)).square().sum(dim=0)
    (expected,) = torch.autograd.grad(E.sum(), W)
    torch.testing.assert_close(
        energy_gradient(W.detach(), X, Y, ACTIVATIONS[name]), expected, rtol=1e-10, atol=1e-10 * expected.abs().max()
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_theorem_1_each_node_climbs_its_own_energy_when_g_f_is_the_independent_form(name: str) -> None:
    """−∂L/∂W with G_F set to ỸỸᵀF̃ is ∇E: the chain rule through F = σ(XW) by autograd."""
    (X, Y), W = some_data(), draw(6, 5, seed=1).requires_grad_()
    F = ACTIVATIONS[name](X @ W)
    G = Y @ (Y.T @ (F - F.mean(dim=0))).detach()
    (climb,) = torch.autograd.grad(F, W, grad_outputs=G)
    gradient = energy_gradient(W.detach(), X, Y, ACTIVATIONS[name])
    torch.testing.assert_close(climb, gradient, rtol=1e-10, atol=1e-10 * gradient.abs().max())


@pytest.mark.parametrize("name", [name for name, activation in ACTIVATIONS.items() if activation.degree])
def test_unit_energy_is_the_energy_at_unit_norm(name: str) -> None:
    (X, Y), W, activation = some_data(), draw(6, 5, seed=1), ACTIVATIONS[name]
    norms = W.norm(dim=0)
    scaled = unit_energy(energy_of_weights(W, X, Y, activation), norms, activation.degree or 0)
    torch.testing.assert_close(scaled, energy_of_weights(W / norms, X, Y, activation), rtol=1e-10, atol=0)


def test_a_node_of_norm_zero_has_no_unit_energy() -> None:
    assert unit_energy(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), 2).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", GROUPS)
def test_on_all_pairs_the_energy_is_the_spread_of_a_group_convolution(name: str) -> None:
    """σ = x²: E = 2‖u∗v − mean‖² with (u∗v)(g) = Σ_h u(h)v(h⁻¹g)."""
    group, (X, Y) = GROUPS[name], all_pairs(GROUPS[name])
    M, w = group.order, draw(2 * GROUPS[name].order).numpy()
    convolution = np.zeros(M)
    for h in range(M):
        for k in range(M):
            convolution[group.table[h, k]] += w[h] * w[M + k]
    expected = 2 * ((convolution - convolution.mean()) ** 2).sum()
    assert energy_of_weights(torch.tensor(w)[:, None], X, Y, SQUARE).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", GROUPS)
def test_theorem_2_corrected_every_maximum_is_m_over_twice_the_real_dimension(name: str) -> None:
    """Gaussian starts climb to E* = M/(2d_R) of the non-trivial blocks, and each E* is reached.

    The source prints M/8d and M/16d; see docs/theory.md.
    """
    group, (X, Y) = GROUPS[name], all_pairs(GROUPS[name])
    W = draw(2 * group.order, 40)
    for _ in range(140):
        W = W / W.norm(dim=0)
        W = W + 0.25 * energy_gradient(W, X, Y, SQUARE) / (4 * energy_of_weights(W, X, Y, SQUARE))
    reached = energy_of_weights(W / W.norm(dim=0), X, Y, SQUARE)
    maxima = {group.order / (2 * b.real_dimension) for b in isotypic_blocks(group) if not b.trivial}
    assert {round(value, 9) for value in reached.tolist()} == maxima
