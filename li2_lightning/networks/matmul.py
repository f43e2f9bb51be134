"""Matrix products and squared magnitudes, each by its fastest implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from li2_lightning._compat import onednn_product

# Below this many multiplications MKL is faster, since a call of it costs less.
SMALL = 2**21


def product(left: Tensor, right: Tensor) -> Tensor:
    """AB, …×m×n, for matrices A (…×m×k) and B (…×k×n) of one type.

    On a CPU torch multiplies float32 matrices with MKL, which uses AVX-512 on Intel's processors only. torch also
    contains oneDNN, which uses AVX-512 on every processor: on two cores of an AMD EPYC it takes 35–50 % of MKL's time
    for the products of the blocked kernel (256 rows, K=2048, C=71). It is fastest where A is contiguous.
    """
    wants_gradient = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    is_single = left.dtype == torch.float32 and left.device.type == "cpu"
    is_batch = left.ndim > 2 or right.ndim > 2
    if _ONEDNN is None or is_batch or not is_single or wants_gradient or len(left) * right.numel() < SMALL:
        return left @ right
    # On a slice of columns of a wider matrix oneDNN is a thousand times slower.
    plain = right if right.is_contiguous() or right.mT.is_contiguous() else right.contiguous()
    return _ONEDNN(left, plain.mT, None, "none", [], "")


def squared_magnitudes(values: Tensor) -> Tensor:
    """|x|² of every entry, real."""
    return values.real.square() + values.imag.square() if values.is_complex() else values.square()


# Without AVX-512 oneDNN gains nothing.
_ONEDNN = onednn_product() if torch.backends.cpu.get_cpu_capability() == "AVX512" else None


def explain_product() -> str:
    """Which library `product` uses for large float32 matrices on the CPU and, where it is not oneDNN, why."""
    capability = torch.backends.cpu.get_cpu_capability()
    if _ONEDNN is not None:
        return f"oneDNN, because torch sees {capability}"
    if capability != "AVX512":
        return f"torch's own, because torch sees {capability} and oneDNN gains only where it sees AVX512"
    return "torch's own, because this torch has no operator for oneDNN's product"
