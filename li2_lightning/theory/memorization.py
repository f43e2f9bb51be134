"""Memorization with too few data: which memorizing features have the largest energy (Theorem 5).

Source: arXiv:2509.21519, Theorem 5. There is one target h, and its pairs (g, g⁻¹h) occur with probability p_g. A node
w = [u; v] has pre-activations z_g = u_g + v_{g⁻¹h} and the energy ½(Σ_g p_gσ(z_g))², which is *not centred*: centred
over a single label it would be 0. The maximum depends on φ(x) = σ'(x)/x. If φ does not decrease (x²), the best node is
**focused** on the likeliest pair. If φ strictly decreases (ReLU, SiLU, tanh, sigmoid), the best node is **spreading**
over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from li2_lightning.networks.activations import Activation


def memorization_energy(weights: Tensor, probabilities: Tensor, partners: Tensor, activation: Activation) -> Tensor:
    """½(Σ_g p_gσ(u_g + v_{g⁻¹h}))² of every node, (K,).

    Args:
        weights: [u; v], 2M×K.
        probabilities: p, (M,).
        partners: index of g⁻¹h for every g, (M,): ``group.table[group.inverses, h]``.
        activation: σ.
    """
    u, v = weights.chunk(2)
    return 0.5 * (probabilities @ activation(u + v[partners])).square()


def memorization_gradient(weights: Tensor, probabilities: Tensor, partners: Tensor, activation: Activation) -> Tensor:
    """∇ of `memorization_energy`, 2M×K: s·p_gσ'(z_g) at u_g and at v_{g⁻¹h}, with s = Σ_g p_gσ(z_g)."""
    u, v = weights.chunk(2)
    z = u + v[partners]
    by_z = (probabilities @ activation(z)) * probabilities[:, None] * activation.derivative(z)
    return torch.cat([by_z, torch.zeros_like(by_z).index_copy(0, partners, by_z)])


def curvature_ratio(x: Tensor, activation: Activation) -> Tensor:
    """φ(x) = σ'(x)/x for x > 0, whose slope decides between focused and spreading features."""
    return activation.derivative(x) / x


def focused_maximizer(probabilities: Tensor, partners: Tensor) -> Tensor:
    """w = (e_{g*}; e_{g*⁻¹h})/√2 at the likeliest g*, (2M,): the maximum for σ = x², with E = 2·p_max².

    For x³ and other σ that grow faster than x², nodes focused on other pairs are local maxima, too.
    """
    s = torch.zeros_like(probabilities)
    s[probabilities.argmax()] = 2**0.5
    return _spread(s, partners)


def spreading_maximizer(probabilities: Tensor, partners: Tensor, activation: Activation) -> Tensor:
    """u_g = v_{g⁻¹h} = s_g/2 with φ(s_g) = λ/p_g and ‖s‖ = √2, (2M,): the maximum where φ strictly decreases on x > 0.

    λ is found by bisection, and every s_g for a given λ by an inner bisection. For ReLU s = √2·p/‖p‖ and E = Σp² in
    closed form; ascent reaches that maximum from positive starts, while Gaussian starts leave dead units.

    Args:
        probabilities: p, (M,), all positive, float64 for a result to 1e-9.
        partners: as `memorization_energy`.
        activation: σ with a decreasing φ; for an increasing φ use `focused_maximizer`.
    """

    def ratio(x: Tensor) -> Tensor:
        return curvature_ratio(x, activation)

    top = torch.full_like(probabilities, 2**0.5)
    # No s_g exceeds √2, so λ lies between min p·φ(√2) and the λ at which all s_g are small.
    low, high = (probabilities * ratio(top)).min().log(), (probabilities * ratio(1e-6 * top)).max().log()
    for _ in range(100):
        middle = (low + high) / 2
        too_long = torch.linalg.vector_norm(_inverse(middle.exp() / probabilities, ratio, top)) > 2**0.5
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    return _spread(_inverse(((low + high) / 2).exp() / probabilities, ratio, top), partners)


def _inverse(target: Tensor, ratio: Callable[[Tensor], Tensor], top: Tensor) -> Tensor:
    """x in (0, top] with φ(x) = target for decreasing φ; top where φ is larger everywhere."""
    low, high = torch.zeros_like(top), top
    for _ in range(100):
        middle = (low + high) / 2
        below = ratio(middle) > target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _spread(s: Tensor, partners: Tensor) -> Tensor:
    """[u; v] with u_g = v_{g⁻¹h} = s_g/2, the shortest weights with pre-activations s."""
    return torch.cat([s / 2, torch.zeros_like(s).index_copy(0, partners, s / 2)])
