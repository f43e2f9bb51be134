"""Which sets of features solve the task: the constructions and the residual of Theorem 3.

Source: arXiv:2509.21519, Theorem 3, with σ = x² and all M² pairs of a group. With η = 0 the readout gives Ŷ = Ỹ exactly
if Ỹ lies in the column space of F̃. The source's 2Σd⁴ random features suffice; the sets below are smaller. Whether they
are the smallest sets is not known for a group that is not cyclic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import matrix_irreps
from li2_lightning.theory.lazy import center


def pair_features(weights: Tensor) -> Tensor:
    """F = (u[a] + v[b])² for all pairs in the order a·M + b, M²×K, from weights 2M×K."""
    u, v = weights.chunk(2)
    return (u[:, None] + v[None]).square().reshape(-1, weights.shape[1])


def pair_targets(group: FiniteGroup, dtype: torch.dtype = torch.float64) -> Tensor:
    """Y one-hot of ab for all pairs in the order a·M + b, M²×M."""
    return torch.eye(group.order, dtype=dtype)[torch.tensor(group.table).flatten()]


def reconstruction_residual(features: Tensor, targets: Tensor, cut: float = 1e-9) -> Tensor:
    """Norm of the part of Ỹ outside the column space of F̃, over ‖Ỹ‖; below 1e-8 the features solve the task.

    Args:
        features, targets: F (…×n×K) and Y (…×n×C); both are centred here.
        cut: singular values of F̃ below this multiple of the largest count as zero.
    """
    F, Y = center(features), center(targets).to(features.dtype)
    U, values, _ = torch.linalg.svd(F, full_matrices=False)
    U = U * (values > cut * values[..., :1])[..., None, :]
    off, whole = (torch.linalg.vector_norm(part, dim=(-2, -1)) for part in (Y - U @ (U.mH @ Y), Y))
    residual: Tensor = off / whole
    return residual


def both_signs(u: Tensor, v: Tensor) -> Tensor:
    """The units [u; v] and then [u; −v], 2M×2K from M×K each."""
    return torch.cat([torch.cat([u, v]), torch.cat([u, -v])], dim=1)


def cyclic_construction(order: int, complex_weights: bool = False) -> Tensor:
    """2M−2 features that solve Z_M for odd M, as weights 2M×(2M−2) in float64 or complex128.

    Real: for each frequency k and s in {0, π/2} two units u(h) = cos(2πkh/M + φ), v(h) = cos(2πkh/M + ψ) with phases
    (φ, ψ) = (s/2, s/2) and (s/2 + π/2, s/2 − π/2). Complex: [χ; χ] and [χ; −χ] for every character χ ≠ 1.

    Raises:
        InputError: the order is even or below 3.
    """
    if order < 3 or order % 2 == 0:
        raise InputError(f"order is {order}; the construction is for odd orders from 3 on.")
    angles = 2 * math.pi / order * torch.arange(order, dtype=torch.float64)
    if complex_weights:
        waves = torch.exp(1j * torch.outer(angles, torch.arange(1, order, dtype=torch.float64)))
        return both_signs(waves, waves)
    units = []
    for frequency in range(1, (order + 1) // 2):
        for s in (0.0, math.pi / 2):
            for phases in ((s / 2, s / 2), (s / 2 + math.pi / 2, s / 2 - math.pi / 2)):
                units.append(torch.cat([torch.cos(frequency * angles + phase) for phase in phases]))
    return torch.stack(units, dim=1)


def matrix_entry_construction(group: FiniteGroup) -> Tensor:
    """Complex features [ρ_ij; ±ρ_jl] of every irrep ρ ≠ 1, which solve any group: weights 2M×2Σd³, complex128.

    (u+v)² − (u−v)² = 4uv, and Σ_j ρ_ij(a)ρ_jl(b) = ρ_il(ab): every entry of ρ(ab) is a sum of d differences.
    """
    units = []
    for entries in matrix_irreps(group)[1:]:
        rho = torch.tensor(entries)
        d = rho.shape[1]
        first = rho[:, :, :, None].expand(-1, d, d, d).reshape(-1, d**3)  # ρ_ij at column (i, j, l)
        second = rho[:, None].expand(-1, d, d, d).reshape(-1, d**3)  # ρ_jl
        units.append(both_signs(first, second))
    if not units:
        raise InputError("The group of order 1 has nothing to reconstruct.")
    return torch.cat(units, dim=1)
