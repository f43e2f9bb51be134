"""Matrix products and squared magnitudes, each by its fastest implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from li2_lightning.networks.libraries import ONEDNN, OfTorch, Products, library, onednn

# Below this many multiplications MKL is faster, since a call of it costs less.
SMALL = 2**21
OF_TORCH = OfTorch()


def product(left: Tensor, right: Tensor, space: Tensor | None = None) -> Tensor:
    """AB, …×m×n, for matrices A (…×m×k) and B (…×k×n) of one type.

    Large float32 matrices on a CPU are multiplied by the faster library (`li2_lightning.networks.libraries`).

    Args:
        space: memory of the result's shape and type, for a library that can write to it.
    """
    return _products(left, right).product(left, right, space)


def write_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Replace ``out`` by AB (`product`)."""
    _products(left, right).write(out, left, right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add AB (`product`) to ``total``."""
    _products(left, right).add(total, left, right)


def arranged(right: Tensor, rows: int) -> Tensor:
    """B in the memory layout that is fastest for several products AB of one B (…×k×n), each A with ``rows`` rows."""
    return right.mT.contiguous().mT if _is_for_onednn(rows, right) else right


def _products(left: Tensor, right: Tensor) -> Products:
    wants_gradient = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    is_batch = left.ndim > 2 or right.ndim > 2
    if is_batch or wants_gradient or not _is_for_onednn(len(left), right):
        return OF_TORCH
    return onednn() or OF_TORCH


def _is_for_onednn(rows: int, right: Tensor) -> bool:
    is_single = right.dtype == torch.float32 and right.device.type == "cpu"
    return is_single and rows * right.shape[-2:].numel() >= SMALL and library() == ONEDNN


def squared_magnitudes(values: Tensor) -> Tensor:
    """|x|² of every entry, real."""
    return values.real.square() + values.imag.square() if values.is_complex() else values.square()
