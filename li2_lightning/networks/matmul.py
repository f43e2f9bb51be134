"""Products and squares by the way that costs least."""

from __future__ import annotations

import torch
from torch import Tensor

from li2_lightning._compat import onednn_product

# Multiplications below which MKL is done sooner: its calls cost less.
SMALL = 2**21


def product(left: Tensor, right: Tensor) -> Tensor:
    """AB, m × n, for matrices A (m × k) and B (k × n) of one type.

    On a CPU torch multiplies float32 matrices with MKL, which leaves AVX-512 unused on processors of other makers than
    Intel. torch carries oneDNN, too, which does not: on two cores of an AMD EPYC it takes 35–50 % of MKL's time for the
    products of the blocked kernel (256 rows, K=2048, C=71). Fastest where A is contiguous.
    """
    wants_gradient = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    is_single = left.dtype == torch.float32 and left.device.type == "cpu"
    if _ONEDNN is None or not is_single or wants_gradient or len(left) * right.numel() < SMALL:
        return left @ right
    # For columns cut out of a wider matrix oneDNN takes a way that is a thousand times slower.
    plain = right if right.is_contiguous() or right.mT.is_contiguous() else right.contiguous()
    return _ONEDNN(left, plain.mT, None, "none", [], "")


def squared_magnitudes(values: Tensor) -> Tensor:
    """|x|² of every entry, real."""
    return values.real.square() + values.imag.square() if values.is_complex() else values.square()


# Without AVX-512 oneDNN gains nothing.
_ONEDNN = onednn_product() if torch.backends.cpu.get_cpu_capability() == "AVX512" else None
