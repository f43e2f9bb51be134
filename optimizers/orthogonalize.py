"""The nearest (semi-)orthogonal matrix: exact, or by a polynomial that needs matrix products alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from optimizers.errors import OptimizerError, check_choice

Method = Literal["newton_schulz", "svd"]
METHODS = ("newton_schulz", "svd")

# σ ← aσ + bσ³ + cσ⁵, steep at 0: five steps take [.002, 1] into [.68, 1.21], and more steps no closer to 1.
CLASSIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, method: Method = "newton_schulz", steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Replace the singular values of a matrix by ones: UDVᴴ becomes UVᴴ.

    ``svd`` is exact on the range of the matrix: singular values below machine epsilon × smaller side × σ_max
    are rounding and become 0, so a zero matrix stays zero. ``newton_schulz`` starts at M/max(‖M‖_F, eps):

        X ← aX + b(XXᴴ)X + c(XXᴴ)²X,   (a, b, c) = (3.4445, −4.7750, 2.0315),

    whose singular values follow the same polynomial: after five steps those above .002 ‖M‖_F lie between .68
    and 1.21, and weaker ones are still on their way up.

    Args:
        matrix: (..., rows, columns), any floating or complex dtype; leading dimensions are a batch. Half
            precision is computed in float32.
        method: ``"newton_schulz"`` or ``"svd"``.
        steps: Newton–Schulz steps, at least 1.
        eps: smallest Frobenius norm that is scaled up to 1 by ``newton_schulz``.

    Returns:
        A new tensor of the same shape and dtype; a matrix with a value that is not finite gives NaN.

    Raises:
        OptimizerError: fewer than two dimensions, unknown method, no step.

    Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    if matrix.ndim < 2:
        raise OptimizerError(f"Only a matrix can be orthogonalized, not a tensor of shape {tuple(matrix.shape)}.")
    check_choice("orthogonalization", method, METHODS)
    if steps < 1:
        raise OptimizerError(f"Newton–Schulz needs at least one step, not {steps}.")
    X = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
    is_tall = X.shape[-2] > X.shape[-1]
    X = X.mH if is_tall else X
    X = _polar(X) if method == "svd" else _newton_schulz(X, steps, eps)
    return (X.mH if is_tall else X).to(matrix.dtype)


def _polar(X: Tensor) -> Tensor:
    # LAPACK raises on NaN; a diverged run is to be reported as divergence, so NaN goes in and comes out.
    is_finite = X.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    U, S, Vh = torch.linalg.svd(torch.where(is_finite, X, 0), full_matrices=False)
    in_range = torch.finfo(S.dtype).eps * X.shape[-2] * S[..., :1] < S
    return torch.where(is_finite, (U * in_range.unsqueeze(-2)) @ Vh, torch.nan)


def _newton_schulz(X: Tensor, steps: int, eps: float) -> Tensor:
    a, b, c = CLASSIC
    identity = torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=eps)
    # Every iterate is a polynomial of A = XXᴴ times X, so a wide matrix can iterate on the small A (twice as
    # fast at 142 × 2048). A has the singular values squared, which costs digits: taken afresh after three
    # steps, it is as accurate in float32 as the plain iteration; without that, twelve steps overflow.
    block = 3 if X.shape[-1] >= 2 * X.shape[-2] else 1
    for start in range(0, steps, block):
        A = X @ X.mH
        P = Q = a * identity + b * A + c * (A @ A)
        for _ in range(min(block, steps - start) - 1):
            A = P @ A @ P
            P = a * identity + b * A + c * (A @ A)
            Q = P @ Q
        X = Q @ X
    return X
