"""Checks of stage I: representations, the lazy limit, and the first features (Proposition 1, Theorem 1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import character_table, matrix_irreps
from li2_lightning.networks.activations import ACTIVATIONS, find_activation
from li2_lightning.theory.energy import (
    energy_gradient,
    group_energy_gradient,
)
from li2_lightning.theory.lazy import center, early_gradient, lazy_limit, ridge_readout
from li2_lightning.verification.findings import (
    Finding,
    all_pairs,
    distance,
    draw,
    within,
)


def irreps(group: FiniteGroup, quick: bool) -> Iterator[Finding]:
    """The irreps are homomorphisms with the characters of the group, and Σd² = M."""
    products, traces = 0.0, 0.0
    for irrep, rho in zip(character_table(group), matrix_irreps(group), strict=True):
        error = np.abs(np.einsum("aij,bjk->abik", rho, rho) - rho[group.table]).max()
        products = max(products, float(error))
        traces = max(traces, float(np.abs(np.trace(rho, axis1=1, axis2=2) - irrep.character).max()))
    yield within("ρ(a)ρ(b) = ρ(ab)", "matrices against the Cayley table", products, 1e-9)
    yield within("tr ρ = χ", "matrices against the class-sum characters", traces, 1e-9)
    squares = sum(irrep.dimension**2 for irrep in character_table(group))
    yield Finding("Σd² = M", "dimensions", str(group.order), str(squares), squares == group.order)


def proposition_1(quick: bool) -> Iterator[Finding]:
    """Proposition 1: G_F under gradient flow of V, its limit and its first step, for output scales β."""
    F, Y = draw(10, 14), torch.eye(4, dtype=torch.float64)[torch.arange(10) % 4]
    ridge, step, V = 2.0, 0.01, draw(14, 4, seed=1)

    def slope(V: Tensor) -> Tensor:
        V = V.detach().requires_grad_()
        J = 0.5 * center(Y - F @ V).square().sum() + ridge / 2 * V.square().sum()
        return -torch.autograd.grad(J, V)[0]

    for _ in range(1600):  # until ηt = 32
        half = V + step / 2 * slope(V)
        V = V + step * slope(half)
    G = center(Y - F @ V) @ V.mT
    yield within(
        "G_F ends at ηZ(ZᵀF̃)",
        "gradient flow of V by autograd until ηt = 32",
        distance(G, lazy_limit(F, Y, ridge)),
        1e-8,
    )
    for beta in (1.0, 3.0):
        V = 1e-7 * beta * center(F).mT @ center(Y)
        G = beta * center(Y - beta * F @ V) @ V.mT
        error = distance(G, early_gradient(F, Y, 1e-7, beta))
        yield within(f"G_F grows like β²t, β = {beta:.0f}", "one small step of V from 0", error, 1e-3)
    beta, ridge = 3.0, 1e-6
    V = ridge_readout(beta * center(F), center(Y), ridge)
    G = beta * center(Y - beta * F @ V) @ V.mT
    ratio = float(lazy_limit(F, Y, ridge).norm() / G.norm())
    yield Finding("the limit falls like β²", "ridge readout at β = 1 and 3", "9", f"{ratio:.6f}", abs(ratio - 9) < 1e-3)


def theorem_1(group: FiniteGroup, quick: bool) -> Iterator[Finding]:
    """Theorem 1: the gradient of the energy, and that ỸỸᵀF̃ moves each node along its own gradient."""
    X, Y = all_pairs(group)
    worst = 0.0
    for activation in ACTIVATIONS.values():
        W = draw(2 * group.order, 3).requires_grad_()
        E = 0.5 * (Y.mT @ activation(X @ W)).square().sum(dim=0)
        (expected,) = torch.autograd.grad(E.sum(), W)
        worst = max(worst, distance(energy_gradient(W.detach(), X, Y, activation), expected))
    yield within("∇E = Xᵀ diag(σ') ỸỸᵀσ", f"autograd, {len(ACTIVATIONS)} activations", worst, 1e-10)
    # One step of G_F = ỸỸᵀF̃ through the network moves column j along its own ∇E.
    W, square = draw(2 * group.order, 3).requires_grad_(), find_activation("square")
    F = square(X @ W)
    (moved,) = torch.autograd.grad(F, W, grad_outputs=(Y @ (Y.mT @ center(F))).detach())
    gradient = group_energy_gradient(W.detach(), group)[1]
    yield within("every node climbs its own E", "back-propagated ỸỸᵀF̃ against ∇E by convolutions",
                 distance(moved, gradient), 1e-10)  # fmt: skip
