"""Whether the most similar nodes repel each other (Theorem 6 of arXiv:2509.21519, section 3.4).

At the ridge readout G_F = P_η ỸỸᵀF̃B with B = (F̃ᴴF̃+ηI)⁻¹, K×K. The off-diagonal entry b_jl is the weight of node l in
the gradient of node j. It is negative for two nodes that are similar given all others: each is pushed away from the
other. For complex features every transpose is a conjugate transpose, and signs and cosines are those of real parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from li2_lightning.networks.matmul import product
from li2_lightning.theory.energy import column_norms

BLOCK = 256
"""Rows of a Gram matrix that are computed at a time; the half that symmetry gives is left out."""

SHORTEST = 1e-12
"""A centred feature with a smaller norm is constant up to rounding."""


def repulsion(features: Tensor, ridge: Tensor | float, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the pairs with b_jl < 0, and strength −mean of b_jl/√(b_jj b_ll).

    Both are NaN if there is no pair, and if η is not positive or too small for a Cholesky factor.

    Args:
        features: F̃, centred, n×K, in float64, since float32 gets the sign of a small b_jl wrong.
        ridge: η.
        pairs: node indices, P×2, as from `most_similar_pairs`.

    Returns:
        Two scalars. The strength is between −1 and 1: since B is the inverse of F̃ᴴF̃+ηI, it is the mean partial
        correlation of the two nodes given all others.
    """
    nodes, place = torch.unique(pairs, return_inverse=True)
    B = interaction_block(features, ridge, nodes)
    diagonal = B.diagonal().real if B.is_complex() else B.diagonal()
    left, right = place[:, 0], place[:, 1]
    entries = B[left, right].real if B.is_complex() else B[left, right]
    strength = -(entries / (diagonal[left] * diagonal[right]).sqrt()).mean()
    share = (entries < 0).to(strength.dtype).mean()
    return torch.where(strength.isfinite(), share, torch.nan), strength


def interaction_block(features: Tensor, ridge: Tensor | float, nodes: Tensor) -> Tensor:
    """B_SS = (F̃ᴴF̃+ηI)⁻¹ restricted to the rows and columns of S nodes, S×S.

    It takes one Cholesky factor L of size min(n, K) and S triangular solves: with K ≤ n, LLᴴ = F̃ᴴF̃+ηI and Z = L⁻¹E_S
    give B_SS = ZᴴZ; else LLᴴ = F̃F̃ᴴ+ηI and Z = L⁻¹F̃_S give (I − ZᴴZ)/η (Woodbury). The result is NaN if η ≤ 0 or L
    does not exist.

    Args:
        features: F̃, n×K.
        ridge: η.
        nodes: S column indices.
    """
    F = features
    n, K = F.shape
    eta = torch.as_tensor(ridge, dtype=F.real.dtype if F.is_complex() else F.dtype, device=F.device)
    if n >= K:
        unit = torch.zeros(K, len(nodes), dtype=F.dtype, device=F.device)
        unit[nodes, torch.arange(len(nodes), device=F.device)] = 1
        Z = _solve_half(F.mH, eta, unit)
        block = Z.mH @ Z
    else:
        Z = _solve_half(F, eta, F[:, nodes])
        block = (torch.eye(len(nodes), dtype=F.dtype, device=F.device) - Z.mH @ Z) / eta
    return torch.where(eta > 0, block, torch.nan)


def most_similar_pairs(features: Tensor, count: int) -> Tensor:
    """The ``count`` pairs j < l with the largest positive cosine of f̃_j and f̃_l, P×2, most similar first.

    All K(K−1)/2 cosines are computed in float32 (about nK² operations), so the order of pairs whose cosines differ by
    less than 1e-7 is arbitrary. P < ``count`` if fewer cosines are positive; a constant node is in no pair.

    Args:
        features: F̃, centred, n×K.
    """
    K = features.shape[1]
    single = features.to(torch.complex64 if features.is_complex() else torch.float32)
    directions = (single / column_norms(single).clamp_min(SHORTEST)).mT.contiguous()
    if directions.is_complex():
        # The real part of a complex inner product is a real inner product of twice the length.
        directions = torch.view_as_real(directions).flatten(1)
    cosines = torch.zeros(0, dtype=torch.float32, device=features.device)
    pairs = torch.zeros(0, dtype=torch.int64, device=features.device)  # each as the number j·K + l
    for start in range(0, K, BLOCK):
        block = product(directions[start : start + BLOCK], directions[start:].mT)
        # Entries below the diagonal repeat a pair; as zeros they are dropped with the cosines that are not positive.
        found, place = block.triu(1).flatten().topk(min(count, block.numel()))
        left, right = start + place // (K - start), start + place % (K - start)
        cosines, pairs = torch.cat([cosines, found]), torch.cat([pairs, left * K + right])
        cosines, kept = cosines.topk(min(count, len(cosines)))
        pairs = pairs[kept]
    pairs = pairs[cosines > 0]
    return torch.stack([pairs // K, pairs % K], dim=1)


def _solve_half(rows: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """L⁻¹ right, for the Cholesky factor L of rows·rowsᴴ + ηI; NaN if L does not exist."""
    size = len(rows)
    # Cholesky reads the lower half only.
    gram = rows.new_empty(size, size)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        gram[start:stop, :stop] = rows[start:stop] @ rows[:stop].mH
    gram.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(gram)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.where(info == 0, solved, torch.nan)
