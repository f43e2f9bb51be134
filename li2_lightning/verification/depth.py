"""Checks of deeper networks: what reaches a layer while the layers above are random (section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from li2_lightning import groups
from li2_lightning.theory.depth import below_random_layer, isometry
from li2_lightning.theory.lazy import center
from li2_lightning.verification.findings import Finding, all_pairs, distance, draw, within

# A readout this small leaves R = Ỹ and has G_L ∝ ỸỸᵀF̃_L, as in the lazy stage.
SMALL = 1e-9


def depth(quick: bool) -> Iterator[Finding]:
    """Section 6: G_l ∝ D̃ỸỸᵀD̃F_l below random layers, where it is exact and where it is not; and W_LW_Lᵀ ≈ I."""
    X, Y = all_pairs(groups.cyclic(7))
    target = Y @ Y.mT
    yield from _one_gate_a_sample(target, Y)
    width = 80_000
    F = functional.relu(X @ draw(X.shape[1], 24))
    A = draw(24, width, seed=1)
    G = _reaches(F, [A], Y)
    exact = below_random_layer(target, F)
    yield within(
        "correction: below random ReLU nodes G_l has the gates of pairs of samples",
        f"G_l by autograd through {width} random nodes against its mean over the Gaussian",
        distance(G / G.norm(), exact / exact.norm()),
        0.05,
    )
    # The mean gate of a random node is ½ for every sample, so that D̃ ∝ I.
    wanted, found = (_cosine(x, target @ F) for x in (exact, G))
    yield Finding(
        "correction: D̃ỸỸᵀD̃F_l has one gate a sample, and is near, not equal",
        "cos(G_l, D̃ỸỸᵀD̃F_l), autograd against the mean over the Gaussian",
        f"{wanted:.3f} ± .01, < .99",
        f"{found:.3f}",
        abs(found - wanted) < 0.01 and found < 0.99,
    )
    yield from _single_draws(X, Y, target, 512 if quick else 1024)


def _one_gate_a_sample(target: Tensor, Y: Tensor) -> Iterator[Finding]:
    """Two layers of ReLU nodes in which each sample is on or off for all nodes, and A_lA_lᵀ = I."""
    n, K = len(target), 9
    on = torch.arange(n) % 3 > 0
    # Rows of one sign: a permutation keeps the sign, so that a gate is that of the sample.
    F = torch.where(on, 1.0, -1.0)[:, None] * (0.1 + draw(n, K, seed=3).abs())
    layers = [
        torch.eye(K, dtype=F.dtype)[torch.randperm(K, generator=torch.Generator().manual_seed(s))] for s in (0, 1)
    ]
    G = _reaches(F, layers, Y)
    gate = on.to(F.dtype)[:, None]
    expected = gate * (target @ (gate * F))
    yield within(
        "G_l ∝ D̃ỸỸᵀD̃F_l where a sample has one gate and A_lA_lᵀ = I",
        "autograd of J through two layers of permuted ReLU nodes",
        distance(G / G.norm(), expected / expected.norm()),
        1e-6,
    )
    without = 1 - _cosine(G, target @ F)
    yield Finding("and not without D̃", "1 − cos(G_l, ỸỸᵀF̃_l)", "> 0.1", f"{without:.3f}", without > 0.1)


def _single_draws(X: Tensor, Y: Tensor, target: Tensor, K: int) -> Iterator[Finding]:
    """W_LW_Lᵀ ≈ I for one draw of W_L: on few directions, and as a whole, which G_l sees."""
    A, d = draw(K, K, seed=2) / K**0.5, 6
    error = float((A[:d] @ A[:d].mT - torch.eye(d)).norm() / d**0.5)
    expected = ((d + 1) / K) ** 0.5
    yield Finding("W_LW_Lᵀ ≈ I on few directions: error √((d+1)/K)", f"one draw, d = {d}, K = {K}; within a factor 2",
                  f"{expected:.3f}", f"{error:.3f}", 0.5 < error / expected < 2)  # fmt: skip
    cosine = float(isometry(A))
    yield Finding("correction: W_LW_Lᵀ is no multiple of I as a whole, cos = 1/√2", f"one draw, K = {K}",
                  "0.707 ± .005", f"{cosine:.4f}", abs(cosine - 0.5**0.5) < 0.005)  # fmt: skip
    F = functional.relu(X @ draw(X.shape[1], K, seed=4))
    for ratio in (1, 4):
        G = _reaches(F, [draw(K, ratio * K, seed=5)], Y, sigma=lambda z: z)
        cosine, expected = _cosine(G, target @ F), (1 + 1 / ratio) ** -0.5
        yield Finding(
            "correction: below one draw of a linear layer cos(G_l, ỸỸᵀF̃_l) = 1/√(1 + K_l/K_L), at any width",
            f"autograd, K_l = {K}, K_L = {ratio * K}",
            f"{expected:.3f} ± .02",
            f"{cosine:.3f}",
            abs(cosine - expected) < 0.02,
        )


def _reaches(
    features: Tensor, weights: Sequence[Tensor], Y: Tensor, sigma: Callable[[Tensor], Tensor] = functional.relu
) -> Tensor:
    """G_l = −∂J/∂F_l by autograd, through layers with the weights A_m above l and a small readout."""
    F = features.clone().requires_grad_()
    last = F
    for A in weights:
        last = sigma(last @ A)
    V = (SMALL * center(last).mT @ Y).detach()
    J = 0.5 * center(Y - last @ V).square().sum()
    return -torch.autograd.grad(J, F)[0]


def _cosine(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum() / left.norm() / right.norm())
