"""Stage II, independent feature learning: the energy whose gradient every node follows.

Source: arXiv:2509.21519, Theorem 1. When G_F ∝ ỸỸᵀF̃, column j of W follows ∇E alone, with

    E(w) = ½‖Ỹᵀσ(Xw)‖²,     ∇E(w) = Xᵀ diag(σ'(Xw)) ỸỸᵀσ(Xw),

for any σ and any data. Ỹ is centred over samples, so Ỹᵀσ = Ỹᵀσ̃.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.networks.activations import Activation
from li2_lightning.networks.matmul import squared_magnitudes
from li2_lightning.theory.features import block_energies


def energy(target_features: Tensor) -> Tensor:
    """E of every node, (…, K), from ỸᵀF (…×C×K)."""
    return 0.5 * squared_magnitudes(target_features).sum(dim=-2)


def column_norms(weights: Tensor) -> Tensor:
    """‖w_j‖ of every column, (…, K) from …×d×K; torch.linalg.vector_norm takes ten times as long over this axis."""
    return squared_magnitudes(weights).sum(dim=-2).sqrt()


def energy_of_weights(weights: Tensor, inputs: Tensor, centered_targets: Tensor, activation: Activation) -> Tensor:
    """E(w) of every column of ``weights``.

    Args:
        weights: …×d×K.
        inputs: X, n×d.
        centered_targets: Ỹ, n×C.
        activation: σ.
    """
    features = activation(inputs.to(weights.dtype) @ weights)
    return energy(centered_targets.to(features.dtype).mT @ features)


def energy_gradient(weights: Tensor, inputs: Tensor, centered_targets: Tensor, activation: Activation) -> Tensor:
    """∇E = Xᵀ diag(σ'(Xw)) ỸỸᵀσ(Xw), …×d×K, for real weights (Theorem 1); arguments as `energy_of_weights`."""
    z = inputs @ weights
    driven = centered_targets @ (centered_targets.mT @ activation(z))
    return inputs.mT @ (activation.derivative(z) * driven)


def unit_energy(energies: Tensor, norms: Tensor, degree: int) -> Tensor:
    """E of the nodes scaled to unit norm, for σ homogeneous of degree k: E(w/‖w‖) = E(w)/‖w‖²ᵏ; (K,) each.

    A node of norm zero has no direction; its energy is NaN.
    """
    return torch.where(norms > 0, energies / norms.pow(2 * degree), torch.nan)


def group_convolution(u: Tensor, v: Tensor, group: FiniteGroup) -> Tensor:
    """(u∗v)(g) = Σ_h u(h)v(h⁻¹g), M×K from M×K each, column by column."""
    products: Tensor = u[:, None] * v[_indices(group.table[group.inverses], v)]
    return products.sum(dim=0)


def group_energy(weights: Tensor, group: FiniteGroup) -> Tensor:
    """E of every node for σ = x² and all M² pairs of a group: E(w) = 2‖u∗v − mean(u∗v)‖², (K,).

    Args:
        weights: 2M×K, real or complex; w = [u; v] has the pre-activations u[h₁] + v[h₂].
    """
    u, v = weights.chunk(2)
    spread = group_convolution(u, v, group)
    return 2 * (spread - spread.mean(dim=0)).abs().square().sum(dim=0)


def group_energy_gradient(weights: Tensor, group: FiniteGroup) -> tuple[Tensor, Tensor]:
    """E (K,) as `group_energy`, and ∇E (2M×K).

    With c = u∗v − mean: ∇_u E(h) = 4Σ_g c(g)v̄(h⁻¹g), ∇_v E(k) = 4Σ_h c(hk)ū(h); for complex weights ∇E is
    ∂E/∂Re w + i∂E/∂Im w, the direction of steepest ascent.
    """
    u, v = weights.chunk(2)
    shifted = v[_indices(group.table[group.inverses], u)]
    c = (u[:, None] * shifted).sum(dim=0)
    c = c - c.mean(dim=0)
    by_u = 4 * (shifted.conj() * c).sum(dim=1)
    by_v = 4 * (c[_indices(group.table, u)] * u.conj()[:, None]).sum(dim=0)
    return 2 * c.abs().square().sum(dim=0), torch.cat([by_u, by_v])


@dataclass(frozen=True)
class Ascent:
    """The end points of gradient ascent on the unit sphere.

    Attributes:
        weights: d×K, every column of norm 1.
        energies: E, (K,).
        residuals: ‖∇E − ⟨w,∇E⟩w‖/⟨w,∇E⟩ (K,), 0 at a stationary point of the sphere. With held vectors the numerator
            has the gradient that they leave.
        steps: number of steps of each column, (K,).
    """

    weights: Tensor
    energies: Tensor
    residuals: Tensor
    steps: Tensor


def ascend(
    start: Tensor,
    energy_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    rate: float = 0.25,
    tolerance: float = 1e-10,
    max_steps: int = 1000,
    held: Tensor | None = None,
) -> Ascent:
    """Gradient ascent of an energy on the unit sphere, w ← normalize(w + t∇E/⟨w,∇E⟩), for each column by itself.

    With ``held`` the gradient of a column loses its components along the vectors that the column holds.

    For σ = x² the energy has degree 4, so ⟨w,∇E⟩ = 4E. With t = .25 every Gaussian start on all pairs of the groups
    tried converged within 140 steps (tolerance 1e-10 needs float64; float32 reaches 4e-7).

    Args:
        start: d×K, without a zero column. Where ⟨w,∇E⟩ ≤ 0 the step is undefined; that can happen for a σ that is not
            homogeneous, and for negative starts.
        energy_and_gradient: from weights d×k to E (k,) and ∇E (d×k).
        rate: t.
        tolerance: a column stops once its residual is below this.
        max_steps: largest number of steps of a column.
        held: vectors h of each column, K×d×m; the gradient g becomes g − Σ h⟨h,g⟩, which is orthogonal to h if they are
            orthonormal, and has a share κ of its component along each if they have the norm √(1−κ).
    """
    weights = start / torch.linalg.vector_norm(start, dim=0)
    count = weights.shape[1]
    energies = torch.zeros(count, dtype=weights.abs().dtype, device=weights.device)
    residuals = torch.full_like(energies, torch.inf)
    steps = torch.zeros(count, dtype=torch.int64, device=weights.device)
    moving = torch.arange(count, device=weights.device)
    for step in range(max_steps + 1):
        w = weights[:, moving]
        energy_now, gradient = energy_and_gradient(w)
        radial = (w.conj() * gradient).sum(dim=0)
        radial = (radial.real if radial.is_complex() else radial).clamp_min(torch.finfo(energies.dtype).tiny)
        direction = gradient / radial
        tangent = direction - w
        if held is not None:
            direction = direction - _along(direction, held[moving])
            tangent = direction - (w.conj() * direction).sum(dim=0) * w
        residual = torch.linalg.vector_norm(tangent, dim=0)
        energies[moving], residuals[moving], steps[moving] = energy_now, residual, step
        far = residual >= tolerance
        moving = moving[far]
        if step == max_steps or not len(moving):
            break
        w = w[:, far] + rate * direction[:, far]
        weights[:, moving] = w / torch.linalg.vector_norm(w, dim=0)
    return Ascent(weights, energies, residuals, steps)


def _along(columns: Tensor, vectors: Tensor) -> Tensor:
    """Σ h⟨h,x⟩ over the vectors h (K×d×m) of each column x (d×K)."""
    return torch.einsum("kdm,km->dk", vectors, torch.einsum("kdm,dk->km", vectors.conj(), columns))


def predicted_maxima(group: FiniteGroup, complex_weights: bool = False) -> Tensor:
    """E* of every non-trivial block, in the order of ``isotypic_blocks(group)[1:]``: Theorem 2, as corrected.

    E* = M/(2d_R) on ‖w‖ = 1 for σ = x² and all pairs, d_R the dimension of the real irreducible: M/(2d), M/(4d), M/(4d)
    for kinds R, C, H. With complex weights E* = M/(2d) for every irrep. float64.

    Source: arXiv:2509.21519, Theorem 2. It prints M/(8d) for real irreps and M/(16d) for complex pairs, since it drops
    the factor 2 of the cross term in (u+v)², which is a factor 4 in E; it has no quaternionic case.
    """
    dimensions = [b.dimension if complex_weights else b.real_dimension for b in isotypic_blocks(group)[1:]]
    return group.order / (2 * torch.tensor(dimensions, dtype=torch.float64))


def flat_directions(group: FiniteGroup) -> Tensor:
    """The number of directions on the unit sphere in which a maximum of E is flat, per block; integers, (blocks,).

    A maximum is w = [x⊗c; P(y⊗c)]: x and y on the unit sphere of ℝ^d_R, and c, which chooses the irreducible
    subspace, in the projective space of Fⁿ over F = ℝ, ℂ, ℍ for kinds R, C, H. n is the number of copies of the
    irreducible in the block, n·d_R = rank. So the maxima form a manifold of dimension 2(d_R − 1) + dim F·(n − 1). In
    all other directions the Hessian is negative (`sphere_curvatures`; measured, −4E* and −8E*). Real weights, σ = x²;
    order of the blocks as in `predicted_maxima`.

    Source: arXiv:2509.21519, Corollary 1 (maxima are flat). For a real irrep of dimension 1 the number is 0.
    """
    blocks, over = isotypic_blocks(group)[1:], {"R": 1, "C": 2, "H": 4}
    copies = [block.rank // block.real_dimension for block in blocks]
    return torch.tensor(
        [2 * (b.real_dimension - 1) + over[b.kind] * (n - 1) for b, n in zip(blocks, copies, strict=True)]
    )


def sphere_curvatures(weights: Tensor, group: FiniteGroup) -> Tensor:
    """Eigenvalues of the Hessian of E on the unit sphere at a stationary point w (2M,); ascending, (2M − 1,).

    The Hessian on the sphere is that of E minus ⟨w,∇E⟩ = 4E, restricted to the tangent space; σ = x², all pairs.
    """

    def value(w: Tensor) -> Tensor:
        return group_energy(w[:, None], group)[0]

    hessian: Tensor = torch.autograd.functional.hessian(value, weights)  # type: ignore[no-untyped-call]
    tangent = torch.linalg.qr(weights[:, None], mode="complete").Q[:, 1:]
    curvatures: Tensor = torch.linalg.eigvalsh(tangent.mT @ hessian @ tangent) - 4 * value(weights)
    return curvatures


def maximizer(basis: Tensor, x: Tensor, y: Tensor, group: FiniteGroup) -> Tensor:
    """w = [Bx; conj(PBy)]/√2 with x, y scaled to norm 1 and (Pf)(g) = f(g⁻¹): a maximum of E on the sphere, 2M×K.

    Args:
        basis: B, M×d_R (or complex M×d): orthonormal, of one irreducible left-invariant subspace
            (`irreducible_subspaces`, `matrix_irreps`).
        x, y: coefficients in that basis, d_R×K each, independent of each other. The source's [u; ±Pu] is y = ±x.
    """
    u, z = (basis @ (a / torch.linalg.vector_norm(a, dim=0)) for a in (x, y))
    return torch.cat([u, z[_indices(group.inverses, z)].conj()]) / 2**0.5


def block_shares(weights: Tensor, group: FiniteGroup) -> Tensor:
    """‖Π_k w‖²/‖w‖² with both halves of w together, blocks×K; blocks as ``isotypic_blocks(group)[1:]``."""
    return block_energies(weights, group) / weights.abs().square().sum(dim=0)


def orbit_rank(weights: Tensor, group: FiniteGroup, tolerance: float = 1e-6) -> Tensor:
    """Dimension of the span of all left translates of u and of z = P v̄, for w = [u; v]; (K,) integers.

    At a maximum u and z lie in one irreducible left-invariant subspace, and the dimension is d_R (d over ℂ). At a point
    of rank r inside a block, which is a strict saddle with E = E*/r, the dimension is r·d_R.

    Args:
        tolerance: smallest singular value that counts, relative to the largest.
    """
    u, v = weights.chunk(2)
    z = v[_indices(group.inverses, v)].conj()
    quotients = _indices(group.table[group.inverses], u)
    translates = torch.cat([u.mT[:, quotients], z.mT[:, quotients]], dim=1)  # K×2M×M
    values = torch.linalg.eigvalsh(translates.mH @ translates)
    counts: Tensor = values > tolerance**2 * values[:, -1:]
    return counts.sum(dim=1)


@dataclass(frozen=True)
class Limits:
    """The end points of an ascent compared with Theorem 2; (K,) each.

    Attributes:
        block: position in ``isotypic_blocks(group)[1:]`` of the block that holds most of w.
        purity: share of ‖w‖² in that block.
        relative_error: |E − E*|/E* against the prediction for that block.
        rank: orbit rank in units of d_R; 1 at a maximum.
        imbalance: |‖u‖² − ‖v‖²|/‖w‖².
    """

    block: Tensor
    purity: Tensor
    relative_error: Tensor
    rank: Tensor
    imbalance: Tensor

    def maximizers(self, tolerance: float = 1e-9) -> Tensor:
        """(K,) whether each is a maximum of Theorem 2: value, one block, one irreducible subspace, equal halves."""
        within = (self.relative_error < tolerance) & (self.purity > 1 - tolerance) & (self.imbalance < tolerance)
        return within & (self.rank == 1)


def classify_limits(weights: Tensor, group: FiniteGroup) -> Limits:
    """Compare points of the unit sphere (2M×K, real or complex) with the maxima of Theorem 2, as corrected."""
    purity, block = block_shares(weights, group).max(dim=0)
    blocks = isotypic_blocks(group)[1:]
    sizes = [b.dimension if weights.is_complex() else b.real_dimension for b in blocks]
    dimensions = torch.tensor(sizes, device=weights.device)
    predicted = predicted_maxima(group, weights.is_complex()).to(weights.device)[block]
    norms = torch.stack([half.abs().square().sum(dim=0) for half in weights.chunk(2)])
    return Limits(
        block=block,
        purity=purity,
        relative_error=(group_energy(weights, group) - predicted).abs() / predicted,
        rank=orbit_rank(weights, group) / dimensions[block],
        imbalance=(norms[0] - norms[1]).abs() / norms.sum(dim=0),
    )


def _indices(array: npt.NDArray[np.int64], like: Tensor) -> Tensor:
    """Indices of group elements as a tensor on the device of ``like``."""
    return torch.tensor(array, device=like.device)
