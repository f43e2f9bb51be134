"""Stages II and III told apart by G_F itself, without forming it.

Source: arXiv:2509.21519, sections 3.2 and 3.4; the η-free tests and the small matrices are this project's own.

At the ridge readout G_F = P_η ỸỸᵀF̃B exactly, with B = (F̃ᵀF̃+ηI)⁻¹ and P_η = η(F̃F̃ᵀ+ηI)⁻¹. While both are near
multiples of the identity, G_F has the **independent form** ỸỸᵀF̃: every node climbs its own energy. A readout at a
ridge equilibrium of whatever strength satisfies F̃ᵀR = ηV, so that G_F = RVᵀ takes the **coupled form** RRᵀF̃/η: what
the nodes together have not yet explained drives them all (Theorem 7).

With A = ỸᵀF̃ (C×K) and Q = F̃ᴴR (K×C) every norm and inner product below is one of C×C matrices, so that a cosine of
G_F costs O((n+K)C²) beyond A and Q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GradientStructure:
    """Scalars; a cosine is NaN where one of its sides vanishes.

    Attributes:
        norm: ‖G_F‖.
        independence: cos(G_F, ỸỸᵀF̃); 1 = every node learns on its own.
        coupling: cos(G_F, RRᵀF̃); 1 = the residual drives the nodes together.
        residual_alignment: cos(R, Ỹ), which tests P_η ∝ I.
        readout_alignment: cos(V, F̃ᵀỸ), which tests B ∝ I.
        readout_equilibrium: cos(V, F̃ᵀR); 1 = V is at a ridge equilibrium.
        effective_ridge: η̂ = ‖F̃ᵀR‖/‖V‖, the strength at which it would be.
    """

    norm: Tensor
    independence: Tensor
    coupling: Tensor
    residual_alignment: Tensor
    readout_alignment: Tensor
    readout_equilibrium: Tensor
    effective_ridge: Tensor


def gradient_structure(
    target_features: Tensor,
    residual_features: Tensor,
    readout: Tensor,
    residual_gram: Tensor,
    residual_targets: Tensor,
    target_gram: Tensor,
) -> GradientStructure:
    """The structure of G_F = RVᴴ.

    Args:
        target_features: A = ỸᵀF̃, C×K.
        residual_features: Q = F̃ᴴR, K×C.
        readout: V, K×C.
        residual_gram: RᵀR, C×C.
        residual_targets: RᵀỸ, C×C.
        target_gram: ỸᵀỸ, C×C.
    """
    A, Q, V = target_features, residual_features, readout
    norm = _trace(residual_gram, V.mH @ V).clamp_min(0).sqrt()
    independent = _trace(target_gram, A @ A.mH).clamp_min(0).sqrt()
    coupled = _trace(residual_gram, Q.mH @ Q).clamp_min(0).sqrt()
    residual_norm = residual_gram.diagonal().sum().sqrt()
    target_norm = target_gram.diagonal().sum().sqrt()
    readout_norm, driving_norm = torch.linalg.vector_norm(V), torch.linalg.vector_norm(Q)
    return GradientStructure(
        norm=norm,
        independence=_ratio(_trace(residual_targets, A @ V), norm * independent),
        coupling=_ratio(_trace(residual_gram, Q.mH @ V), norm * coupled),
        residual_alignment=_ratio(residual_targets.diagonal().sum(), residual_norm * target_norm),
        readout_alignment=_ratio(_inner(V, A.mH), readout_norm * torch.linalg.vector_norm(A)),
        readout_equilibrium=_ratio(_inner(V, Q), readout_norm * driving_norm),
        effective_ridge=_ratio(driving_norm, readout_norm),
    )


def node_coupling(readout: Tensor, residual_gram: Tensor, pairs: Tensor) -> Tensor:
    """Median |cos| of pairs of columns of G_F.

    Column j of G_F is R v̄_j with v_j the j-th row of V, so its inner products are v_l RᵀR v_jᴴ: exact for each pair.

    Args:
        readout: V, K×C.
        residual_gram: RᵀR, C×C.
        pairs: node indices, P×2.
    """
    left, right = readout[pairs[:, 0]], readout[pairs[:, 1]]
    weighted_left, weighted_right = (side @ residual_gram.to(side.dtype) for side in (left, right))
    product = (weighted_left * right.conj()).sum(dim=1).abs()
    norms = [(weighted * side.conj()).sum(dim=1).real.clamp_min(0).sqrt()
             for weighted, side in ((weighted_left, left), (weighted_right, right))]  # fmt: skip
    return _ratio(product, norms[0] * norms[1]).nanmedian()


def _trace(real: Tensor, other: Tensor) -> Tensor:
    """Re tr(real · other)."""
    other = other.real if other.is_complex() else other
    return (real.mT * other).sum()


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Re⟨left, right⟩."""
    product = (left.conj() * right).sum()
    return product.real if product.is_complex() else product


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, torch.nan)
