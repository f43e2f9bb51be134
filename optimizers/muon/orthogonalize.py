"""The nearest (semi-)orthogonal matrix: exact, or by polynomials that need matrix products alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from li2_lightning.errors import InputError, check_choice

Method = Literal["newton_schulz", "newton_schulz_scheduled", "polar_express", "svd"]
Precision = Literal["parameter", "float32", "bfloat16"]
METHODS = ("newton_schulz", "newton_schulz_scheduled", "polar_express", "svd")
PRECISIONS = ("parameter", "float32", "bfloat16")

Triple = tuple[float, float, float]

# σ ← aσ + bσ³ + cσ⁵, steep at 0: five steps take [.002, 1] into [.68, 1.21], and more steps no closer to 1.
CLASSIC: Triple = (3.4445, -4.7750, 2.0315)
# A polynomial of its own for each step: five of them take [.0013, 1] into [.70, 1.16]; there is no sixth.
SCHEDULE: tuple[Triple, ...] = (
    (4.01, -9.22, 5.80),
    (3.49, -6.38, 3.23),
    (3.34, -6.21, 3.20),
    (3.64, -7.48, 4.43),
    (3.46, -5.35, 2.85),
)
# The singular values, as shares of the Frobenius norm, that `polar_express` is optimal for.
LOWER = 1e-3
# Beyond its interval an optimal quintic grows steeply, and rounding may lift a singular value beyond it.
SAFETY = 1.01


def orthogonalize(
    matrix: Tensor,
    method: Method = "newton_schulz",
    steps: int = 5,
    eps: float = 1e-7,
    precision: Precision = "parameter",
) -> Tensor:
    """Replace the singular values of a matrix by ones: UDVᴴ becomes UVᴴ.

    ``svd`` is exact on the range of the matrix: singular values below machine epsilon × smaller side × σ_max
    are rounding and become 0, so a zero matrix stays zero. The others start at M/max(‖M‖_F, eps) and iterate

        X ← aX + b(XXᴴ)X + c(XXᴴ)²X,

    under which every singular value follows σ ← aσ + bσ³ + cσ⁵. They differ in (a, b, c):

        newton_schulz            (3.4445, −4.7750, 2.0315) in every step
        newton_schulz_scheduled  a triple of its own for each of at most five steps
        polar_express            the optimal triples for σ in [.001, 1], see `optimal_quintics`

    Args:
        matrix: (..., rows, columns), any floating or complex dtype; leading dimensions are a batch.
        method: one of `METHODS`.
        steps: how often to iterate, at least 1; ``svd`` does not.
        eps: smallest Frobenius norm that is scaled up to 1; ``svd`` does not scale.
        precision: what to compute in: the matrix's own dtype (``"parameter"``), ``"float32"`` or
            ``"bfloat16"``. There is no decomposition in half precision: ``svd`` then computes in float32.

    Returns:
        A new tensor of the same shape and dtype; a matrix with a value that is not finite gives NaN.

    Raises:
        InputError: fewer than two dimensions, an unknown method or precision, a number of steps that the
            method does not have, a complex matrix in bfloat16.

    Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); N. Amsel et al., "The
    Polar Express: optimal matrix sign methods and their application to the Muon algorithm" (2025).
    """
    if matrix.ndim < 2:
        raise InputError(f"Only a matrix can be orthogonalized, not a tensor of shape {tuple(matrix.shape)}.")
    polynomials = coefficients(method, steps)
    X = matrix.to(working_dtype(matrix.dtype, method, precision))
    is_tall = X.shape[-2] > X.shape[-1]
    X = X.mH if is_tall else X
    X = _polar(X) if method == "svd" else _iterate(X, polynomials, eps)
    return (X.mH if is_tall else X).to(matrix.dtype)


def orthogonalize_each(
    matrices: Sequence[Tensor],
    method: Method = "newton_schulz",
    steps: int = 5,
    eps: float = 1e-7,
    precision: Precision = "parameter",
) -> list[Tensor]:
    """`orthogonalize` of each matrix; those of one shape and dtype are computed together."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        alike[matrix.shape, matrix.dtype, matrix.device].append(place)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        if len(places) == 1:
            found[places[0]] = orthogonalize(matrices[places[0]], method, steps, eps, precision)
        else:
            together = orthogonalize(torch.stack([matrices[i] for i in places]), method, steps, eps, precision)
            found |= dict(zip(places, together.unbind(), strict=True))
    return [found[place] for place in range(len(matrices))]


def coefficients(method: Method, steps: int) -> tuple[Triple, ...]:
    """The triples (a, b, c) of a method, one a step; none for ``svd``. Errors as for `orthogonalize`."""
    check_choice("orthogonalization", method, METHODS)
    if steps < 1:
        raise InputError(f"{method} needs at least one step, not {steps}.")
    if method == "svd":
        return ()
    if method == "polar_express":
        return optimal_quintics(steps)
    if method == "newton_schulz":
        return (CLASSIC,) * steps
    if steps > len(SCHEDULE):
        raise InputError(f"{method} has {len(SCHEDULE)} steps, not {steps}; choose another orthogonalization.")
    return SCHEDULE[:steps]


def working_dtype(dtype: torch.dtype, method: Method, precision: Precision) -> torch.dtype:
    """The dtype in which `orthogonalize` computes for a matrix of ``dtype``."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "bfloat16" and dtype.is_complex:
        raise InputError("There are no complex numbers in bfloat16; choose precision float32 or parameter.")
    if precision != "parameter":
        dtype = torch.complex64 if dtype.is_complex else getattr(torch, precision)
    return torch.float32 if method == "svd" and dtype in (torch.float16, torch.bfloat16) else dtype


@cache
def optimal_quintics(steps: int, lower: float = LOWER, safety: float = SAFETY) -> tuple[Triple, ...]:
    """The odd quintics whose composition is nearest to 1 on [lower, 1].

    The best composition is greedy: step k takes the odd quintic p that minimizes max |1 − p| on the interval
    [l, u] where the steps before it left the singular values, and leaves them in [1 − E, 1 + E], E its error.
    Every step but the last is then stretched, p(σ/safety), and its successor is made for the image of that.

    Args:
        steps: how many.
        lower: smallest singular value that counts, in (0, 1].
        safety: at least 1; a singular value up to safety·u must not grow without bound.

    Returns:
        (a, b, c) of aσ + bσ³ + cσ⁵, one triple a step.

    Source: N. Amsel et al., "The Polar Express" (2025), theorem 3.1 and section 3.3.
    """
    l, u = lower, 1.0  # noqa: E741
    triples = []
    for step in range(steps):
        a, b, c = _best_quintic(l, u)
        stretch = safety if step < steps - 1 else 1.0
        a, b, c = a / stretch, b / stretch**3, c / stretch**5
        triples.append((a, b, c))
        l, u = _image((a, b, c), l, u)  # noqa: E741
    return tuple(triples)


def _best_quintic(l: float, u: float) -> Triple:  # noqa: E741
    """The odd quintic nearest to 1 on [l, u]: 1 − p takes the values E, −E, E, −E at l < q < r < u (Remez)."""
    if u - l < 1e-3 * u:
        # The limit l → u → m, p(m) = 1 and p′(m) = p″(m) = 0, within 1e-9 of 1 here; the system below is losing digits.
        m = (l + u) / 2
        return 15 / 8 / m, -10 / 8 / m**3, 3 / 8 / m**5
    q, r = (3 * l + u) / 4, (l + 3 * u) / 4
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for _ in range(100):
        x = torch.tensor([l, q, r, u], dtype=torch.float64)
        system = torch.stack([x, x**3, x**5, signs], dim=1)
        a, b, c, _ = torch.linalg.solve(system, torch.ones_like(x)).tolist()
        before = q, r
        q, r = _extrema((a, b, c))
        if abs(q - before[0]) + abs(r - before[1]) < 1e-14 * u:
            break
    return a, b, c


def _extrema(triple: Triple) -> tuple[float, float]:
    """The positive roots of p′ = a + 3bσ² + 5cσ⁴, which for an optimal quintic are two (one, as l → u)."""
    a, b, c = triple
    root = math.sqrt(max(0.0, 9 * b * b - 20 * a * c))
    # The smaller by Vieta: the difference −3b − root would lose its digits.
    return math.sqrt(2 * a / (-3 * b + root)), math.sqrt((-3 * b + root) / (10 * c))


def _image(triple: Triple, l: float, u: float) -> tuple[float, float]:  # noqa: E741
    a, b, c = triple
    points = [l, *(x for x in _extrema(triple) if l < x < u), u]
    values = [a * x + b * x**3 + c * x**5 for x in points]
    return min(values), max(values)


def _polar(X: Tensor) -> Tensor:
    # LAPACK raises on NaN. Here NaN gives NaN, so that a diverged run is reported as divergence.
    is_finite = X.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    U, S, Vh = torch.linalg.svd(torch.where(is_finite, X, 0), full_matrices=False)
    in_range = torch.finfo(S.dtype).eps * X.shape[-2] * S[..., :1] < S
    return torch.where(is_finite, (U * in_range.unsqueeze(-2)) @ Vh, torch.nan)


def _iterate(X: Tensor, polynomials: tuple[Triple, ...], eps: float) -> Tensor:
    identity = torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=eps)
    # Every iterate is a polynomial of A = XXᴴ times X, so a wide matrix can iterate on the small A (twice as fast at
    # 142 × 2048). A has the singular values squared, which costs digits. Computed again every three steps, A makes
    # the result as accurate in float32 as the plain iteration does; without that, twelve steps overflow. Half precision
    # has too few digits for it.
    is_wide = X.shape[-1] >= 2 * X.shape[-2] and X.dtype not in (torch.float16, torch.bfloat16)
    block = 3 if is_wide else 1
    for start in range(0, len(polynomials), block):
        A = X @ X.mH
        first, *others = polynomials[start : start + block]
        Q = P = _even_part(first, A, identity)
        for triple in others:
            A = P @ A @ P
            P = _even_part(triple, A, identity)
            Q = P @ Q
        X = Q @ X
    return X


def _even_part(triple: Triple, A: Tensor, identity: Tensor) -> Tensor:
    a, b, c = triple
    return a * identity + b * A + c * (A @ A)
