"""How many random samples preserve the Fourier features: the boundary of Theorem 4 (arXiv:2509.21519)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import irreducible_subspaces
from li2_lightning.networks.activations import Activation, find_activation
from li2_lightning.theory.energy import ascend, block_shares, maximizer


def critical_fraction(order: float, max_irrep_dimension: int) -> float:
    """Fraction of the M² pairs at which test accuracy jumps from 0 to 1 in the source's experiments.

        p = 2.7482 · ln M / M · max(1, max_k d_k / 2)

    The theorem gives the scaling n ≳ d_k² M log(M/δ). The factor 2.7482 is empirical, from the experiments of Fig. 5,
    and not a constant of the theory: where energy ascent on a random sample keeps half of the Fourier features
    (`retention`), n/(M ln M) grows from 4.1 at M = 23 to 13.3 at M = 509, while p/(1−p) · M/ln M converges to about 16.

    Args:
        order: M, the number of group elements.
        max_irrep_dimension: largest dimension d_k of a complex irreducible representation.

    Returns:
        The fraction; it may exceed 1 for small or strongly non-Abelian groups.
    """
    return 2.7482 * math.log(order) / order * max(1.0, max_irrep_dimension / 2)


def sampled_energy_gradient(
    weights: Tensor, left: Tensor, right: Tensor, labels: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """E (K,) and ∇E (2M×K) of Theorem 1 on a list of samples (a, b) with labels ab, without one-hots; real weights.

    Args:
        weights: [u; v], 2M×K; the pre-activation of a sample is u[a] + v[b].
        left, right, labels: indices a, b, ab of n samples, (n,) each.
        activation: σ.
    """
    u, v = weights.chunk(2)
    z = u[left] + v[right]
    F = activation(z)
    frequencies = torch.bincount(labels, minlength=len(u)).to(F.dtype) / len(labels)
    A = torch.zeros_like(u).index_add(0, labels, F) - frequencies[:, None] * F.sum(dim=0)  # ỸᵀF
    driven = activation.derivative(z) * (A[labels] - frequencies @ A)
    gradient = [torch.zeros_like(u).index_add(0, place, driven) for place in (left, right)]
    return 0.5 * A.square().sum(dim=0), torch.cat(gradient)


def retention(group: FiniteGroup, fraction: float, generator: torch.Generator) -> Tensor:
    """Which Fourier features remain on a random sample of the M² pairs: the experiment behind Theorem 4.

    Gradient ascent of the energy of round(fraction·M²) random pairs starts at one random maximum (σ = x², all pairs) of
    every non-trivial block. A feature is kept if more than half of its squared norm stays in its block.

    Args:
        group: the task.
        fraction: p = n/M².
        generator: draws the sample and the starts.

    Returns:
        Share of ‖w‖² in the start's own block at the end, one entry for each non-trivial block, float64; kept where
        above .5. On cyclic groups half of the features are kept at p = .562, .507, .458 for M = 23, 47, 71, with shares
        of .8 to .9.
    """
    M = group.order
    chosen = torch.randperm(M * M, generator=generator)[: round(fraction * M * M)]
    left, right, labels = chosen // M, chosen % M, torch.tensor(group.table).flatten()[chosen]
    starts = []
    for subspaces in irreducible_subspaces(group)[1:]:
        B = torch.tensor(subspaces[0])
        x, y = torch.randn(2, B.shape[1], 1, dtype=B.dtype, generator=generator)
        starts.append(maximizer(B, x, y, group))
    square = find_activation("square")
    ascent = ascend(
        torch.cat(starts, dim=1),
        lambda w: sampled_energy_gradient(w, left, right, labels, square),
        tolerance=1e-5,
        max_steps=2000,
    )
    return block_shares(ascent.weights, group).diagonal()
