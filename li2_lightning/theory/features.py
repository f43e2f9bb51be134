"""The share of a node in each isotypic block; by Theorem 2 of arXiv:2509.21519 a maximum of E lies inside one block."""

from __future__ import annotations

from collections.abc import Sequence
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
    owners = _owners(tuple(block.stop - block.start for block in blocks), parts.device)
    sums = parts.new_zeros(*parts.shape[:-2], len(blocks), parts.shape[-1])
    return sums.index_add_(-2, owners, parts)


@lru_cache(maxsize=16)
def _owners(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The block of each row of the basis; kept on the device, since every copy to an accelerator waits for it."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
