"""Do the most similar nodes push each other away? (Theorem 6 of arXiv:2509.21519, section 3.4.)

At the ridge readout G_F = P_η ỸỸᵀF̃B with B = (F̃ᴴF̃+ηI)⁻¹, K×K. The off-diagonal b_jl says how node l enters the
gradient of node j: negative for two nodes that are alike given all others, so that what one has is taken off the other.
For complex features every transpose is a conjugate transpose, and signs and cosines are those of real parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from li2_lightning.networks.matmul import product
from li2_lightning.theory.energy import column_norms

BLOCK = 256
"""Rows of a Gram matrix at a time: half of it is never computed, and a block stays small."""

SHORTEST = 1e-12
"""A centred feature that is shorter is constant but for rounding."""


def repulsion(features: Tensor, ridge: Tensor | float, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the pairs with b_jl < 0, and strength −mean of b_jl/√(b_jj b_ll).

    Both are NaN without a pair, and where η is not positive or too small for a Cholesky factor.

    Args:
        features: F̃, centred, n×K, in float64: in single precision the sign of a small b_jl is rounding.
        ridge: η.
        pairs: node indices, P×2, as from `most_similar_pairs`.

    Returns:
        Two scalars. The strength lies between −1 and 1: B being the inverse of F̃ᴴF̃+ηI, it is the mean partial
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

    One Cholesky factor L of the smaller side, and S triangular solves: with K ≤ n, LLᴴ = F̃ᴴF̃+ηI and Z = L⁻¹E_S give
    B_SS = ZᴴZ; else LLᴴ = F̃F̃ᴴ+ηI and Z = L⁻¹F̃_S give (I − ZᴴZ)/η (Woodbury). NaN where η ≤ 0 or L does not exist.

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

    All K(K−1)/2 cosines are looked at, in float32, which orders pairs that agree to about 1e-7 as it likes: about
    nK² floating-point operations. P < ``count`` where fewer cosines are positive; a node that is constant has none.

    Args:
        features: F̃, centred, n×K.
    """
    K = features.shape[1]
    single = features.to(torch.complex64 if features.is_complex() else torch.float32)
    directions = (single / column_norms(single).clamp_min(SHORTEST)).mT.contiguous()
    if directions.is_complex():
        # The real part of a complex product is a real one of twice the length.
        directions = torch.view_as_real(directions).flatten(1)
    cosines = torch.zeros(0, dtype=torch.float32, device=features.device)
    pairs = torch.zeros(0, dtype=torch.int64, device=features.device)  # each as the number j·K + l
    for start in range(0, K, BLOCK):
        block = product(directions[start : start + BLOCK], directions[start:].mT)
        # Below the diagonal each pair stands once more; zero is not positive.
        found, place = block.triu(1).flatten().topk(min(count, block.numel()))
        left, right = start + place // (K - start), start + place % (K - start)
        cosines, pairs = torch.cat([cosines, found]), torch.cat([pairs, left * K + right])
        cosines, kept = cosines.topk(min(count, len(cosines)))
        pairs = pairs[kept]
    pairs = pairs[cosines > 0]
    return torch.stack([pairs // K, pairs % K], dim=1)


def _solve_half(rows: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """L⁻¹ right, for the Cholesky factor L of rows·rowsᴴ + ηI; NaN where there is none."""
    size = len(rows)
    # Cholesky reads the lower half alone.
    gram = rows.new_empty(size, size)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        gram[start:stop, :stop] = rows[start:stop] @ rows[:stop].mH
    gram.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(gram)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.where(info == 0, solved, torch.nan)
