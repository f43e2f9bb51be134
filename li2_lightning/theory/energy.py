"""Stage II, independent feature learning: the energy that every node climbs.

Source: arXiv:2509.21519, Theorem 1. When G_F ∝ ỸỸᵀF̃, column j of W follows ∇E alone, with

    E(w) = ½‖Ỹᵀσ(Xw)‖²,     ∇E(w) = Xᵀ diag(σ'(Xw)) ỸỸᵀσ(Xw),

for any σ and any data. Ỹ is centred over samples, so Ỹᵀσ = Ỹᵀσ̃.
"""

from __future__ import annotations

import torch
from torch import Tensor

from li2_lightning.activations import Activation


def energy(target_features: Tensor) -> Tensor:
    """E of every node, (…, K), from ỸᵀF (…×C×K)."""
    return 0.5 * target_features.abs().square().sum(dim=-2)


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
    """E of the unit-norm nodes where σ is homogeneous of degree k: E(w/‖w‖) = E(w)/‖w‖²ᵏ; (K,) each.

    A node of norm zero has no direction; its energy is NaN.
    """
    return torch.where(norms > 0, energies / norms.pow(2 * degree), torch.nan)
