"""What the updates of W tell: a published marker of feature lock-in (arXiv:2605.08119).

σ₂/σ₃ is the ratio of the second to the third *eigenvalue* of the Gram matrix of the last 20 flattened updates (the
slope of a ratio of singular values would be half as large). It rises when the updates of 20 steps come to lie in a
plane. Measured for x² only, and it lags: at the default setting it fires about step 174, some 90 steps after stage III.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 20


def eigengap(gram: Tensor) -> Tensor:
    """Second over third eigenvalue of a Gram matrix (…×20×20); NaN where the third is not positive."""
    values = torch.linalg.eigvalsh(gram)
    second, third = values[..., -2], values[..., -3]
    return torch.where(third > 0, second / third, torch.nan)
