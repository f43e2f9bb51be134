"""Which irreps a node has turned to (Theorem 2 of arXiv:2509.21519 says that a maximum of E lies inside one)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_shares(weights: Tensor, basis: Tensor, blocks: Sequence[slice]) -> Tensor:
    """‖Π_k w‖²/Σ_k‖Π_k w‖² over the non-trivial isotypic blocks k, the operands' parts of w together; blocks×K.

    For a cyclic group these are the squared Fourier amplitudes of each node, as shares of their sum.

    Args:
        weights: (operands·M)×K; a node without non-trivial part has shares NaN.
        basis: orthonormal, (M−1)×M: the rows span the non-trivial functions, sorted by block.
        blocks: which rows belong to each block.
    """
    energies = block_energies(weights, basis, blocks)
    return energies / energies.sum(dim=0)


def block_energies(weights: Tensor, basis: Tensor, blocks: Sequence[slice]) -> Tensor:
    """‖Π_k w‖², the operands' parts of w together; blocks×K. Arguments as `feature_shares`."""
    operands = weights.reshape(-1, basis.shape[1], weights.shape[1])
    parts = (basis @ operands).abs().square().sum(dim=0)
    sizes = torch.tensor([block.stop - block.start for block in blocks])
    owner = torch.repeat_interleave(torch.arange(len(blocks)), sizes).to(parts.device)
    return parts.new_zeros(len(blocks), parts.shape[1]).index_add_(0, owner, parts)
