"""The isotypic blocks of a group in the nodes, the outputs and the gradient.

By Theorem 2 of arXiv:2509.21519 a maximum of E lies inside one block. By its Theorem 7 the residual is Ỹ projected on
the blocks that are missing, once the features span the other blocks. Labels are group elements here, so Π_k, the
projector on the functions of block k, acts on nodes (on each operand's part of w) and on outputs (on the classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import block_basis, isotypic_blocks
from li2_lightning.networks.matmul import product, squared_magnitudes


def feature_shares(weights: Tensor, group: FiniteGroup) -> Tensor:
    """‖Π_k w‖²/Σ_k‖Π_k w‖² over the non-trivial isotypic blocks k, the operands' parts of w together; …×blocks×K.

    For a cyclic group these are the squared Fourier amplitudes of each node, as shares of their sum. The blocks are
    those of ``isotypic_blocks(group)[1:]``, in this function and in all others of this module.

    Args:
        weights: …×(operands·M)×K; the shares of a node without a non-trivial part are NaN.
    """
    energies = block_energies(weights, group)
    return energies / energies.sum(dim=-2, keepdim=True)


def purity(shares: Tensor) -> Tensor:
    """The mean over nodes of the largest share (…) from `feature_shares`; nodes of NaN are left out."""
    return shares.amax(dim=-2).nanmean(dim=-1)


def covered(shares: Tensor) -> Tensor:
    """Whether some node has more than half of itself in a block, boolean, …×blocks, from `feature_shares`."""
    return (shares > 0.5).any(dim=-1)


def block_energies(weights: Tensor, group: FiniteGroup) -> Tensor:
    """‖Π_k w‖², the operands' parts of w together; …×blocks×K. ``weights`` as for `feature_shares`."""
    basis, parts = _basis(group, weights), torch.zeros((), device=weights.device)
    for operand in torch.split(weights, basis.shape[1], dim=-2):
        parts = parts + squared_magnitudes(product(basis, operand))
    return _sum_blocks(parts, group, dim=-2)


@dataclass(frozen=True)
class BlockNorms:
    """Squared norms of the parts of R, G_F and RRᵀF̃ that belong to each block, …×blocks.

    Attributes:
        residual: ‖RΠ_k‖².
        gradient: ‖RΠ_kVᴴ‖², the part of G_F = RVᴴ that the residual in block k drives.
        coupled: ‖RΠ_kQᴴ‖² with Q = F̃ᴴR, the same part of the coupled form RRᴴF̃.
    """

    residual: Tensor
    gradient: Tensor
    coupled: Tensor


def block_norms(residual_gram: Tensor, readout: Tensor, residual_features: Tensor, group: FiniteGroup) -> BlockNorms:
    """The squared norms of R, G_F and RRᵀF̃ by block, from matrices without a side for the samples.

    ‖RΠ_kSᴴ‖² = tr(Π_kRᵀRΠ_k·SᴴS). Parts of different blocks are orthogonal where RᵀR commutes with Π_k, as on all rows
    of a group; the shares of the blocks are shares of the sum of the parts.

    Args:
        residual_gram: RᵀR, …×C×C.
        readout: V, …×K×C, real or complex.
        residual_features: Q = F̃ᴴR, …×K×C.
    """
    onto = _basis(group, residual_gram)
    gram = onto @ residual_gram @ onto.mT
    owners = _owners(group, gram.device)
    inside = torch.where(owners[:, None] == owners, gram, 0.0)

    def driven(side: Tensor) -> Tensor:
        parts = side @ _basis(group, side).mT
        inner = (parts.mH @ parts).real.to(gram.dtype)
        return _sum_blocks((inside * inner).sum(dim=-1), group)

    return BlockNorms(
        residual=_sum_blocks(gram.diagonal(dim1=-2, dim2=-1), group),
        gradient=driven(readout),
        coupled=driven(residual_features),
    )


def target_block_norms(counts: Tensor, group: FiniteGroup) -> Tensor:
    """‖ỸΠ_k‖², …×blocks, from the number of samples n_c of each class (…×C): ỸᵀỸ = diag(n_c) − n_c n_cᵀ/n."""
    basis = _basis(group, counts)
    means = counts @ basis.mT
    parts = counts @ basis.square().mT - means.square() / counts.sum(dim=-1, keepdim=True)
    return _sum_blocks(parts, group)


def explained(residual: Tensor, target: Tensor) -> Tensor:
    """1 − ‖RΠ_k‖²/‖ỸΠ_k‖², …×blocks: the share of the target in each block that the outputs explain.

    It is negative where the outputs are further from the target than its mean. NaN where the target has no part.

    Args:
        residual: ‖RΠ_k‖².
        target: ‖ỸΠ_k‖².
    """
    return torch.where(target > 0, 1 - residual / target, torch.nan)


def missing_ratio(norms: Tensor, target: Tensor, covered: Tensor) -> Tensor:
    """The share of ``norms`` in the blocks that no node covers, over the share of the target in these blocks (…).

    1 means that these blocks have as much of it as of the target. NaN where every block is covered.

    Args:
        norms: squared norms by block, …×blocks (`BlockNorms`).
        target: ‖ỸΠ_k‖², …×blocks.
        covered: whether some node covers a block, …×blocks (`covered`).
    """
    share, expected = (torch.where(covered, 0.0, x).sum(dim=-1) / x.sum(dim=-1) for x in (norms, target))
    return torch.where(expected > 0, share / expected, torch.nan)


def split_outputs(outputs: Tensor, kept: Tensor, group: FiniteGroup) -> tuple[Tensor, Tensor]:
    """Outputs with only some blocks kept, and with only these removed; …×n×C each. Constants over classes stay in both.

    Args:
        outputs: Ŷ, …×n×C, real.
        kept: which blocks, boolean, …×blocks.
    """
    basis = _basis(group, outputs)
    parts = outputs @ basis.mT
    chosen = kept.index_select(-1, _owners(group, outputs.device))[..., None, :]
    inside = torch.where(chosen, parts, 0.0) @ basis
    return inside + outputs.mean(dim=-1, keepdim=True), outputs - inside


def output_block_norms(outputs: Tensor, group: FiniteGroup) -> Tensor:
    """‖ŶΠ_k‖² of outputs (…×n×C, centred over samples), …×blocks."""
    return _sum_blocks(squared_magnitudes(outputs @ _basis(group, outputs).mT).sum(dim=-2), group)


def per_dimension(norms: Tensor, group: FiniteGroup) -> Tensor:
    """Squared norms by block (…×blocks), each over the dimension of its block."""
    return norms / _sum_blocks(norms.new_ones(group.order - 1), group)


def _sum_blocks(parts: Tensor, group: FiniteGroup, dim: int = -1) -> Tensor:
    """Sum the rows of the basis (dimension ``dim``) by block."""
    shape = list(parts.shape)
    shape[dim] = len(isotypic_blocks(group)) - 1
    return parts.new_zeros(shape).index_add_(dim, _owners(group, parts.device), parts)


def _basis(group: FiniteGroup, like: Tensor) -> Tensor:
    """Orthonormal rows that span the non-trivial functions, sorted by block, (M−1)×M; dtype and device of ``like``."""
    return _kept_basis(group, like.dtype, like.device)


# Both are kept on the device, since every copy to an accelerator waits for it.


@lru_cache(maxsize=16)
def _kept_basis(group: FiniteGroup, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(block_basis(group).T).to(device, dtype)


@lru_cache(maxsize=16)
def _owners(group: FiniteGroup, device: torch.device) -> Tensor:
    """The block of each row of the basis."""
    ranks = [block.rank for block in isotypic_blocks(group)[1:]]
    return torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks)).to(device)
