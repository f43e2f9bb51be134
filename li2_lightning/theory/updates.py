"""A published marker of feature lock-in that is computed from the updates of W (arXiv:2605.08119).

σ₂/σ₃ is the ratio of the second to the third *eigenvalue* of the Gram matrix of the last 20 flattened updates. (The
slope of the ratio of singular values would be half as large.) It rises when the updates of 20 steps lie near a plane.
It was measured for x² only. It lags: at the default setting it fires about step 174, some 90 steps after stage III.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 20
# The published rule: the marker fires when ln(σ₂/σ₃) has grown by more than FIRING_SLOPE a step over the last
# SLOPE_OVER steps, from FIRST_STEP on.
SLOPE_OVER, FIRING_SLOPE, FIRST_STEP = 25, 0.04, 100


def eigengap(gram: Tensor) -> Tensor:
    """Second over third eigenvalue of a Gram matrix (…×20×20); NaN if the third is not positive."""
    values = torch.linalg.eigvalsh(gram)
    second, third = values[..., -2], values[..., -3]
    return torch.where(third > 0, second / third, torch.nan)


def eigengap_slope(ratio: Tensor) -> Tensor:
    """[ln(σ₂/σ₃)_t − ln(σ₂/σ₃)_{t−25}]/25, per step.

    Args:
        ratio: σ₂/σ₃ of rows 0, 1, 2 … (…×T), one a step; NaN where undefined (the first 20 rows).

    Returns:
        …×T; NaN where one of the two rows is undefined.
    """
    slope = torch.full_like(ratio, torch.nan)
    logarithm = ratio.log()
    slope[..., SLOPE_OVER:] = (logarithm[..., SLOPE_OVER:] - logarithm[..., :-SLOPE_OVER]) / SLOPE_OVER
    return slope


def lock_in_step(ratio: Tensor) -> int | None:
    """First step ≥ 100 at which ln(σ₂/σ₃) has grown by more than .04 a step over the last 25; None if it never does.

    Args:
        ratio: σ₂/σ₃ of rows 0, 1, 2 … (T,), as the column ``update/eigengap`` holds it with a row a step.
    """
    fires = eigengap_slope(ratio)[FIRST_STEP:] > FIRING_SLOPE
    return FIRST_STEP + int(fires.nonzero()[0, 0]) if fires.any() else None
