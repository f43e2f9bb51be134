"""The snapshots of a run: ``features/row-NNNNNN.npz``, the weights from the one-hots to the nodes at chosen rows.

A file holds ``W``, the weights over their largest magnitude in half precision, and ``scale``, that magnitude; the real
and imaginary parts of complex weights are on a last axis of length 2. A weight is off by at most 2⁻¹¹ of its size, or
2⁻²⁵ of the largest one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from li2_lightning.errors import InputError, message
from li2_lightning.files import read_npz, replacing, row_files


def write_snapshot(directory: Path, step: int, weights: Tensor) -> None:
    """Write the weights at one step into a run directory; weights that are not finite are left out.

    Args:
        weights: (operands·M)×K, real or complex.
    """
    parts = torch.view_as_real(weights.detach()) if weights.is_complex() else weights.detach()
    scale = float(parts.abs().max())
    if not np.isfinite(scale):
        return
    W = (parts / (scale or 1.0)).to(torch.float16).cpu().numpy()
    path = directory / "features" / f"row-{step:06d}.npz"
    path.parent.mkdir(exist_ok=True)
    # Compression would save a tenth of the size and cost more than a training step.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, W=W, scale=scale)


def snapshots(directory: Path) -> dict[int, Path]:
    """The snapshots of a run directory by their step, lowest first."""
    return row_files(directory / "features", ".npz")


def read_snapshot(path: Path) -> npt.NDArray[np.inexact]:
    """The weights of a snapshot, (operands·M)×K, in single precision.

    Raises:
        InputError: the file is damaged.
    """
    try:
        arrays = read_npz(path, ("W", "scale"))
        W: npt.NDArray[np.inexact] = arrays["W"].astype(np.float32) * np.float32(arrays["scale"])
        return np.ascontiguousarray(W).view(np.complex64)[..., 0] if W.ndim == 3 else W
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {message(error)}; remove it to do without this frame.") from error
