"""The isotypic blocks of a group in the nodes, the outputs and the gradient.

By Theorem 2 of arXiv:2509.21519 a maximum of E lies inside one block. By its Theorem 7 the residual is Ỹ projected on
the blocks that are missing, once the features span the other blocks. Labels are group elements here, so Π_k, the
projector on the functions of block k, acts on nodes (on each operand's part of w) and on outputs (on the classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from li2_lightning.networks.matmul import product, squared_magnitudes


def feature_shares(weights: Tensor, basis: Tensor, blocks: Sequence[slice]) -> Tensor:
    """‖Π_k w‖²/Σ_k‖Π_k w‖² over the non-trivial isotypic blocks k, the operands' parts of w together; …×blocks×K.

    For a cyclic group these are the squared Fourier amplitudes of each node, as shares of their sum.

    Args:
        weights: …×(operands·M)×K; the shares of a node without a non-trivial part are NaN.
        basis: orthonormal, (M−1)×M: the rows span the non-trivial functions, sorted by block.
        blocks: the rows of ``basis`` that belong to each block.
    """
    energies = block_energies(weights, basis, blocks)
    return energies / energies.sum(dim=-2, keepdim=True)


def block_energies(weights: Tensor, basis: Tensor, blocks: Sequence[slice]) -> Tensor:
    """‖Π_k w‖², the operands' parts of w together; …×blocks×K. Arguments as `feature_shares`."""
    parts = torch.zeros((), device=weights.device)
    for operand in torch.split(weights, basis.shape[1], dim=-2):
        parts = parts + squared_magnitudes(product(basis, operand))
    return _sum_blocks(parts, blocks, dim=-2)


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


def block_norms(
    residual_gram: Tensor, readout: Tensor, residual_features: Tensor, basis: Tensor, blocks: Sequence[slice]
) -> BlockNorms:
    """The squared norms of R, G_F and RRᵀF̃ by block, from matrices without a side for the samples.

    ‖RΠ_kSᴴ‖² = tr(Π_kRᵀRΠ_k·SᴴS). Parts of different blocks are orthogonal where RᵀR commutes with Π_k, as on all rows
    of a group; the shares of the blocks are shares of the sum of the parts.

    Args:
        residual_gram: RᵀR, …×C×C.
        readout: V, …×K×C, real or complex.
        residual_features: Q = F̃ᴴR, …×K×C.
        basis: (C−1)×C, as for `feature_shares`.
        blocks: the rows of ``basis`` that belong to each block.
    """
    onto = basis.to(residual_gram.dtype)
    gram = onto @ residual_gram @ onto.mT
    owners = _owners(blocks, gram.device)
    inside = torch.where(owners[:, None] == owners, gram, 0.0)

    def driven(side: Tensor) -> Tensor:
        parts = side @ basis.mT.to(side.dtype)
        inner = (parts.mH @ parts).real.to(gram.dtype)
        return _sum_blocks((inside * inner).sum(dim=-1), blocks)

    return BlockNorms(
        residual=_sum_blocks(gram.diagonal(dim1=-2, dim2=-1), blocks),
        gradient=driven(readout),
        coupled=driven(residual_features),
    )


def target_block_norms(counts: Tensor, basis: Tensor, blocks: Sequence[slice]) -> Tensor:
    """‖ỸΠ_k‖², …×blocks, from the number of samples n_c of each class (…×C): ỸᵀỸ = diag(n_c) − n_c n_cᵀ/n.

    Args:
        basis, blocks: as for `block_norms`.
    """
    n_c = counts.to(basis.dtype)
    means = n_c @ basis.mT
    parts = n_c @ basis.square().mT - means.square() / n_c.sum(dim=-1, keepdim=True)
    return _sum_blocks(parts, blocks)


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
        covered: whether some node covers a block, boolean, …×blocks.
    """
    share, expected = (torch.where(covered, 0.0, x).sum(dim=-1) / x.sum(dim=-1) for x in (norms, target))
    return torch.where(expected > 0, share / expected, torch.nan)


def split_outputs(outputs: Tensor, kept: Tensor, basis: Tensor, blocks: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Outputs with only some blocks kept, and with only these removed; …×n×C each. Constants over classes stay in both.

    Args:
        outputs: Ŷ, …×n×C, real.
        kept: which blocks, boolean, …×blocks.
        basis, blocks: as for `block_norms`.
    """
    basis = basis.to(outputs.dtype)
    parts = outputs @ basis.mT
    chosen = kept.index_select(-1, _owners(blocks, outputs.device))[..., None, :]
    inside = torch.where(chosen, parts, 0.0) @ basis
    return inside + outputs.mean(dim=-1, keepdim=True), outputs - inside


def output_block_norms(outputs: Tensor, basis: Tensor, blocks: Sequence[slice]) -> Tensor:
    """‖ŶΠ_k‖² of outputs (…×n×C, centred over samples), …×blocks; other arguments as for `block_norms`."""
    return _sum_blocks(squared_magnitudes(outputs @ basis.to(outputs.dtype).mT).sum(dim=-2), blocks)


def _sum_blocks(parts: Tensor, blocks: Sequence[slice], dim: int = -1) -> Tensor:
    """Sum the rows of the basis (dimension ``dim``) by block."""
    shape = list(parts.shape)
    shape[dim] = len(blocks)
    return parts.new_zeros(shape).index_add_(dim, _owners(blocks, parts.device), parts)


def _owners(blocks: Sequence[slice], device: torch.device) -> Tensor:
    return _owners_of_sizes(tuple(block.stop - block.start for block in blocks), device)


@lru_cache(maxsize=16)
def _owners_of_sizes(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The block of each row of the basis; kept on the device, since every copy to an accelerator waits for it."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
