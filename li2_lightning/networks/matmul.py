"""Matrix products and squared magnitudes, each by its fastest implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from li2_lightning.networks.libraries import ONEDNN, library, onednn

# Below this many multiplications MKL is faster, since a call of it costs less.
SMALL = 2**21


def product(left: Tensor, right: Tensor) -> Tensor:
    """AB, …×m×n, for matrices A (…×m×k) and B (…×k×n) of one type.

    Large float32 matrices on a CPU are multiplied by the faster library (`li2_lightning.networks.libraries`). oneDNN
    is fastest where A is contiguous.
    """
    wants_gradient = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    is_single = left.dtype == torch.float32 and left.device.type == "cpu"
    is_batch = left.ndim > 2 or right.ndim > 2
    if is_batch or not is_single or wants_gradient or len(left) * right.numel() < SMALL or library() != ONEDNN:
        return left @ right
    multiply = onednn()
    assert multiply is not None
    return multiply(left, right)


def squared_magnitudes(values: Tensor) -> Tensor:
    """|x|² of every entry, real."""
    return values.real.square() + values.imag.square() if values.is_complex() else values.square()
