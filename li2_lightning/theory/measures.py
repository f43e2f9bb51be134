"""Progress measures of the literature on grokking: spectra, inequality, and the tangent kernel. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def spectrum(matrix: Tensor) -> Tensor:
    """Squared singular values of a matrix (…×n×K) in float64, smallest first; …×min(n, K)."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float64))
    gram = wide @ wide.mH if wide.shape[-2] < wide.shape[-1] else wide.mH @ wide
    return gram_spectrum(gram)


def gram_spectrum(gram: Tensor) -> Tensor:
    """Eigenvalues of a Gram matrix (…×K×K), not negative."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp_min(0)


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """exp(−Σ p_i ln p_i) with p_i = λ_i/Σλ, (…): the number of directions, by entropy. NaN where all λ are 0.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007. It takes singular values; here their squares are taken,
    which are shares of the variance, so that this measure and `participation_ratio` describe the same distribution.

    Args:
        eigenvalues: λ, squared singular values, …×r.
    """
    p = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)
    return torch.exp(-torch.special.xlogy(p, p).sum(dim=-1))


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """(Σλ)²/Σλ², (…): the number of directions, by their squares. NaN where all λ are 0.

    Source: Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", bioRxiv 214262.

    Args:
        eigenvalues: λ, …×r.
    """
    return eigenvalues.sum(dim=-1).square() / eigenvalues.square().sum(dim=-1)


def gini(values: Tensor) -> Tensor:
    """Gini coefficient of non-negative values (…×B), (…): 0 where all are equal, 1 − 1/B where one has everything.

    G = Σ_i (2i − B − 1)x_(i) / (B Σx) with x_(1) ≤ … ≤ x_(B).

    Source: Hurley & Rickard, "Comparing measures of sparsity", arXiv:0811.4706; used on Fourier components by Nanda et
    al., "Progress measures for grokking via mechanistic interpretability", arXiv:2301.05217.
    """
    count = values.shape[-1]
    ranks = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    return ((2 * ranks - count - 1) * values.sort(dim=-1).values).sum(dim=-1) / (count * values.sum(dim=-1))


def tangent_kernel(features: Tensor, derivatives: Tensor, readout: Tensor, overlaps: Tensor) -> Tensor:
    """Empirical tangent kernel of Ŷ = σ(XW)V summed over the outputs, Θ(x,x') = Σ_c ∇_θŷ_c(x)·∇_θŷ_c(x'), …×m×m.

    Θ = C·FFᵀ + XXᵀ ∘ (σ'(XW) diag(‖v_j‖²) σ'(XW)ᵀ): the first term belongs to V, the second to W.

    Source: Jacot, Gabriel & Hongler, "Neural tangent kernel", arXiv:1806.07572.

    Args:
        features: F of the m rows, …×m×K, real.
        derivatives: σ'(XW), …×m×K.
        readout: V, …×K×C.
        overlaps: XXᵀ, …×m×m.
    """
    of_readout = readout.shape[-1] * features @ features.mT
    weighted = derivatives * readout.square().sum(dim=-1)[..., None, :]
    return of_readout + overlaps * (weighted @ derivatives.mT)


def kernel_alignment(kernel: Tensor, labels: Tensor) -> Tensor:
    """⟨PΘP, PTP⟩/(‖PΘP‖‖PTP‖) of a kernel (…×m×m) with the task kernel T = YYᵀ, P = I − 11ᵀ/m; (…).

    T is 1 where two rows have the same label, and 0 elsewhere. The task kernel of the theory is ỸỸᵀ = PTP.

    Source: Cortes, Mohri & Rostamizadeh, "Algorithms for learning kernels based on centered alignment",
    arXiv:1203.0550.

    Args:
        labels: of the m rows, (m,).
    """
    target = (labels[:, None] == labels).to(kernel.dtype)

    def centered(matrix: Tensor) -> Tensor:
        rows = matrix - matrix.mean(dim=-2, keepdim=True)
        return rows - rows.mean(dim=-1, keepdim=True)

    left, right = centered(kernel), centered(target)
    norms: Tensor = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    return (left * right).sum(dim=(-2, -1)) / norms
