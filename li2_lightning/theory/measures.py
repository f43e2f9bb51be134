"""Progress measures of the literature on grokking: spectra, inequality, and the tangent kernel. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class KernelColumns:
    """Some columns of a symmetric kernel on n rows, and the sums that center it.

    Attributes:
        drawn: which of the rows the columns belong to, (m,).
        columns: Θ[:, drawn], …×n×m.
        sums: Θ1, …×n.
    """

    drawn: Tensor
    columns: Tensor
    sums: Tensor

    def centered(self) -> Tensor:
        """(PΘP)[:, drawn] with P = I − 11ᵀ/n, …×n×m."""
        means = self.sums / self.sums.shape[-1]
        total = means.mean(dim=-1)[..., None, None]
        return self.columns - means[..., :, None] - means[..., self.drawn][..., None, :] + total


def tangent_kernel(
    features: Tensor, derivatives: Tensor, readout: Tensor, inputs: Tensor, drawn: Tensor
) -> KernelColumns:
    """Empirical tangent kernel of Ŷ = σ(XW)V summed over the outputs, Θ(x,x') = Σ_c ∇_θŷ_c(x)·∇_θŷ_c(x').

    Θ = C·FFᵀ + XXᵀ ∘ (D diag(‖v_j‖²) Dᵀ) with D = σ'(XW): the first term belongs to V, the second to W.

    Source: Jacot, Gabriel & Hongler, "Neural tangent kernel", arXiv:1806.07572.

    Args:
        features: F, …×n×K, real.
        derivatives: D, …×n×K.
        readout: V, …×K×C.
        inputs: X, n×d.
        drawn: which columns, (m,).
    """
    F, X, C = features, inputs, readout.shape[-1]
    weighted = derivatives * readout.square().sum(dim=-1)[..., None, :]
    here = F[..., drawn, :], derivatives[..., drawn, :]
    columns = C * F @ here[0].mT + (X @ X[drawn].mT) * (weighted @ here[1].mT)
    sums = C * (F @ F.sum(dim=-2)[..., None])[..., 0] + (X @ (X.mT @ derivatives) * weighted).sum(dim=-1)
    return KernelColumns(drawn, columns, sums)


def task_kernel(labels: Tensor, counts: Tensor, drawn: Tensor) -> KernelColumns:
    """The kernel T = YYᵀ, 1 where two rows have the same label, else 0; PTP is the ỸỸᵀ of the theory.

    Args:
        labels: (n,).
        counts: n_c, the number of rows of each class (C,).
        drawn: which columns, (m,).
    """
    return KernelColumns(drawn, (labels[:, None] == labels[drawn]).to(counts.dtype), counts[labels])


def kernel_alignment(kernel: KernelColumns, labels: Tensor, counts: Tensor) -> Tensor:
    """⟨PΘP, PTP⟩/(‖PΘP‖‖PTP‖) with the task kernel T, (…), **estimated** from the columns of m drawn rows.

    The inner product and ‖PΘP‖² are sums over columns, so the sums over the drawn columns times n/m are unbiased
    estimates of them. ‖PTP‖ is exact. With all columns the result is exact. (The alignment of the m×m kernel of the
    drawn rows is not an estimate: the diagonal has a larger share there.)

    Source: Cortes, Mohri & Rostamizadeh, "Algorithms for learning kernels based on centered alignment",
    arXiv:1203.0550.

    Args:
        kernel: columns of Θ.
        labels, counts: as for `task_kernel`.
    """
    n = counts.sum()
    gram = torch.diag(counts) - torch.outer(counts, counts) / n
    left, right = kernel.centered(), task_kernel(labels, counts, kernel.drawn).centered()
    scale = (n / len(kernel.drawn)).sqrt()
    inner = scale * (left * right).sum(dim=(-2, -1))
    norms: Tensor = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(gram)
    return inner / norms
