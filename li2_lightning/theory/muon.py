"""How many nodes find all features, with and without Muon: a coupon collector's problem (Theorem 8).

Source: arXiv:2509.21519, Theorem 8 and Lemma 2. Muon replaces the gradient G = UDVᵀ by its polar factor UVᵀ. Since
⟨UVᵀ, G⟩ = tr D ≥ 0, stationary points remain. A new node converges to maximum l of L with probability p_l ∝ μ_l^a,
where μ_l is the energy of the maximum. Independent nodes are draws of a coupon collector. Under Muon the pull towards
features that other nodes already have shrinks by κ, so the probability of those features has a factor κ^a.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.theory.energy import ascend, block_shares, group_energy_gradient


def polar_factor(gradient: Tensor) -> Tensor:
    """UVᴴ of the singular value decomposition G = UDVᴴ, …×m×n."""
    U, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
    factor: Tensor = U @ Vh
    return factor


def shrink_factor(new: float, found: float, nodes: int) -> float:
    """κ = β/(β + c√m): the factor by which Muon shrinks the pull of a found feature on a new node.

    m nodes have the gradient c·q along the feature q that they have found. A new node has the gradient γq + βq' with
    q' ⊥ q. The polar factor turns γ/β into κγ/β.

    Args:
        new: β > 0.
        found: c ≥ 0.
        nodes: m.

    Source: arXiv:2509.21519, Theorem 8, which has κ = ½, the case β = c√m.
    """
    return new / (new + found * math.sqrt(nodes))


def collection_probabilities(energies: Tensor, power: float) -> Tensor:
    """p_l = μ_l^a / Σ μ^a, of energies μ (…, L)."""
    weights = energies.pow(power)
    return weights / weights.sum(dim=-1, keepdim=True)


def independent_collection_time(probabilities: Tensor) -> Tensor:
    """T₀ = ∫₀^∞ [1 − Π_l(1 − e^(−p_l t))] dt: expected number of independent nodes that find all L maxima.

    Gauss–Legendre quadrature on panels that double in length up to (ln L + 40)/p_min, where the integrand is below
    e^−40. The relative error is 1e-12 in float64. (The formula by subsets cancels for L beyond 30.)

    Args:
        probabilities: p > 0, (L,).
    """
    p = probabilities
    nodes, weights = _gauss_legendre(20, p)
    end = (math.log(len(p)) + 40) / p.min()
    edges = torch.cat([end.new_zeros(1), end * 2.0 ** torch.arange(-24, 1, dtype=p.dtype, device=p.device)])
    lengths = edges.diff()
    t = edges[:-1, None] + lengths[:, None] * (nodes + 1) / 2
    # 1 − Π(1 − e^(−pt)) by logarithms, which is accurate for a product near 1 and near 0.
    missing = -torch.expm1(torch.log(-torch.expm1(-p * t[..., None])).sum(dim=-1))
    return (missing * weights * lengths[:, None] / 2).sum()


def muon_collection_time(probabilities: Tensor, shrink: float, power: float = 1.0) -> Tensor:
    """T = κ^a T₀ + (1 − κ^a) L: expected number of nodes where found maxima have a factor κ^a in their probability.

    When the set S is found, the next new maximum takes 1 + κ^a p(S)/p(not S) nodes, so each of the L waiting times
    shrinks towards 1.

    Args:
        probabilities: p > 0, (L,).
        shrink: κ in [0, 1]; 1 means independent nodes.
        power: a.

    Source: arXiv:2509.21519, Theorem 8, with κ = ½.
    """
    factor = float(shrink**power)
    return independent_collection_time(probabilities).mul(factor) + (1 - factor) * len(probabilities)


def expected_coverage(maxima: int, nodes: int, factor: float | Tensor = 1.0) -> Tensor:
    """Expected number of L equally likely maxima that K nodes find, for K = 0 … ``nodes``; (…, nodes + 1), float64.

    This is the Markov chain of Theorem 8 after a fixed number of nodes: with s maxima found, the next node finds a new
    one with probability (L − s)/(L − s + κ^a s). Without Muon (κ^a = 1) the result is L(1 − (1 − 1/L)^K); with κ = 0
    every node finds a new maximum, and the result is min(K, L). The mean waiting times 1 + κ^a s/(L − s) add up to
    `muon_collection_time`.

    Args:
        maxima: L; (M − 1)/2 for the cyclic group of prime order M.
        nodes: the largest K.
        factor: κ^a ≥ 0, (…); above 1 nodes attract each other.
    """
    factors = torch.as_tensor(factor, dtype=torch.float64)[..., None]
    found = torch.arange(maxima + 1, dtype=torch.float64)
    new = (maxima - found) / (maxima - found + factors * found).clamp(min=torch.finfo(torch.float64).tiny)
    chance = torch.zeros_like(new)
    chance[..., 0] = 1.0
    expected = [(chance * found).sum(dim=-1)]
    for _ in range(nodes):
        step = chance * new
        chance = chance - step
        chance[..., 1:] += step[..., :-1]
        expected.append((chance * found).sum(dim=-1))
    return torch.stack(expected, dim=-1)


def fitted_factor(maxima: int, nodes: Sequence[int], coverage: Tensor) -> Tensor:
    """κ^a for which `expected_coverage` has the measured sum over several K; (…).

    The sum falls with κ^a, so there is one solution, found by interpolation between 1,001 values from 0 to 10; a sum
    beyond that range gives the nearer end.

    Args:
        maxima: L.
        nodes: the K at which coverage was measured.
        coverage: the mean number of maxima that were found, (…, len(nodes)).
    """
    factors = 10 * torch.linspace(0, 1, 1001, dtype=torch.float64).square()
    totals = expected_coverage(maxima, max(nodes), factors)[:, list(nodes)].sum(dim=-1)
    return torch.as_tensor(np.interp(-coverage.sum(dim=-1).double().numpy(), -totals.numpy(), factors.numpy()))


def simulate_collection(probabilities: Tensor, factor: float, trials: int, generator: torch.Generator) -> Tensor:
    """Simulated numbers of nodes until all L maxima are found, (trials,) integers.

    Args:
        probabilities: p > 0, (L,).
        factor: κ^a, the factor on the probability of a found maximum; 1 means independent nodes.
        trials: number of independent simulations.
        generator: draws the nodes.
    """

    def pull(counts: Tensor) -> Tensor:
        return torch.where(counts > 0, factor * probabilities, probabilities)

    return _simulate(len(probabilities), pull, trials, generator)


def simulate_blocking(probabilities: Tensor, maxima: Tensor, trials: int, generator: torch.Generator) -> Tensor:
    """Simulated numbers of nodes until all L blocks are found, each node blocking one maximum; (trials,) integers.

    Block l is a family of m_l orthogonal maxima, and a node that has found it blocks one of them. So the probability of
    the block is p_l times the share of its maxima that are left, as in an urn without replacement. That is the simplest
    model of nodes whose gradients are orthogonal to those of earlier nodes (`collect_in_turn`).

    Args:
        probabilities: p > 0 of the blocks, (L,).
        maxima: m of each block, (L,).
        trials: number of independent simulations.
        generator: draws the nodes.
    """

    def pull(counts: Tensor) -> Tensor:
        return probabilities * (1 - counts / maxima)

    return _simulate(len(probabilities), pull, trials, generator)


def orthogonal_maxima(group: FiniteGroup) -> Tensor:
    """The size of a family of orthogonal maxima of E that fills a block, in the order of `predicted_maxima`; (blocks,).

    Both halves of w lie in the block, whose rank is d² or 2d², so the size is 2·rank: 2 for a sign, 4 for a frequency
    of a cyclic group.
    """
    return torch.tensor([2 * block.rank for block in isotypic_blocks(group)[1:]], dtype=torch.float64)


def collect_in_turn(group: FiniteGroup, shrink: float, trials: int, generator: torch.Generator) -> Tensor:
    """Numbers of nodes that find every irrep of a group, each node by ascent of the group energy; (trials,) integers.

    Nodes arrive one after the other from Gaussian starts and ascend on the unit sphere (`ascend`, σ = x², all pairs).
    The nodes before stay at their limits, where their gradients are along w, and a new gradient keeps the share κ of
    its component along them. κ = 0 makes it orthogonal to them, as the columns of a polar factor are; this is Muon for
    a node that arrives when the others have converged. κ = 1 means independent nodes. A node has found the block that
    has more than half of ‖w‖².

    An ascent ends at a residual of 1e-3, long after the block is decided; float64.

    Args:
        group: the group.
        shrink: κ in [0, 1].
        trials: number of collections, which run side by side.
        generator: draws the starts.
    """
    found = torch.zeros(trials, len(isotypic_blocks(group)) - 1, dtype=torch.bool)
    times = torch.zeros(trials, dtype=torch.int64)
    running = torch.arange(trials)
    before = torch.zeros(trials, 2 * group.order, 0, dtype=torch.float64)
    while len(running):
        start = torch.randn(2 * group.order, len(running), dtype=torch.float64, generator=generator)
        held = None if shrink == 1 else (1 - shrink) ** 0.5 * _basis(before)
        climb = partial(group_energy_gradient, group=group)
        limits = ascend(start, climb, tolerance=1e-3, max_steps=300, held=held).weights
        share, block = block_shares(limits, group).max(dim=0)
        found[running[share > 0.5], block[share > 0.5]] = True
        times[running] += 1
        left = ~found[running].all(dim=1)
        running = running[left]
        before = torch.cat([before, limits.mT[:, :, None]], dim=2)[left]
    return times


def _basis(vectors: Tensor) -> Tensor:
    """An orthonormal basis of unit vectors (…×d×m); 0 in place of a vector that the ones before it span."""
    Q, R = torch.linalg.qr(vectors)
    new = R.diagonal(dim1=-2, dim2=-1).abs() > 0.1
    basis: Tensor = Q * new[..., None, :]
    return basis


def _simulate(count: int, pull: Callable[[Tensor], Tensor], trials: int, generator: torch.Generator) -> Tensor:
    """Numbers of draws until each of ``count`` maxima is drawn; ``pull`` gives the weights from the counts so far."""
    counts = torch.zeros(trials, count, dtype=torch.int64)
    times = torch.zeros(trials, dtype=torch.int64)
    running = torch.arange(trials)
    while len(running):
        drawn = torch.multinomial(pull(counts[running]), 1, generator=generator)[:, 0]
        counts[running, drawn] += 1
        times[running] += 1
        running = running[(counts[running] == 0).any(dim=1)]
    return times


def collection_times(draws: Tensor, count: int) -> Tensor:
    """Lengths of the consecutive complete collections in a sequence of draws; integers, maybe none.

    A collection ends with the draw that completes it, and the next collection begins with the next draw. An incomplete
    collection at the end is left out. For independent draws the expected length is T₀.

    Args:
        draws: the maximum that each node found, 0 … count−1, (n,).
        count: L.
    """
    times, begin, found = [], 0, set()
    for place, drawn in enumerate(draws.tolist()):
        found.add(drawn)
        if len(found) == count:
            times.append(place + 1 - begin)
            begin, found = place + 1, set()
    return torch.tensor(times, dtype=torch.int64)


def _gauss_legendre(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [−1, 1] from the eigenvectors of the Jacobi matrix (Golub and Welsch)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return values.to(like), (2 * vectors[0].square()).to(like)
