"""Deeper networks: the gradient that reaches each hidden layer, and what it is while the layers above are random.

Source: arXiv:2509.21519, section 6. Layer l has the features F_l = σ(z_l), z_l = F_{l−1}A_l, with F_0 = X, and the
readout acts on F_L. G_l = −∂J/∂F_l for J of Eq. 1, so G_L = RVᴴ and G_{l−1} = (G_l ∘ σ'(z_l))A_lᴴ. The section claims

    G_l ∝ D̃ỸỸᵀD̃F_l      while the layers above l are random,

with D̃ diagonal over the samples. Here its entry is the product over the layers m > l of the mean of σ'(z_m) over the
nodes. The claim follows exactly from G_L ∝ ỸỸᵀF̃_L if σ is homogeneous of degree 1, each sample has one gate for all
nodes of a layer, and A_mA_mᵀ ∝ I above l. With a gate for each node, `below_random_layer` is the exact mean (this
project's own).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from li2_lightning.networks.matmul import squared_magnitudes
from li2_lightning.theory.interaction import inner, ratio


@dataclass(frozen=True)
class LayerSums:
    """Sums over samples for one hidden layer with features F and gradient G (n×K each); …×C×K each but the last two.

    Attributes:
        target_features, target_gradient: ỸᵀF and ỸᵀG.
        residual_features, residual_gradient: RᵀF and RᵀG.
        gated_features, gated_gradient: ỸᵀD̃F and ỸᵀD̃G.
        gate_squares: Σ d_i² over the samples of each class, (…, C), with D̃ = diag(d).
        gradient_norm: ‖G‖, (…).
    """

    target_features: Tensor
    target_gradient: Tensor
    residual_features: Tensor
    residual_gradient: Tensor
    gated_features: Tensor
    gated_gradient: Tensor
    gate_squares: Tensor
    gradient_norm: Tensor


@dataclass(frozen=True)
class LayerStructure:
    """Scalars that describe G_l, (…); a cosine is NaN where one of its two matrices is zero.

    Attributes:
        norm: ‖G_l‖.
        independence: cos(G_l, ỸỸᵀF̃_l).
        coupling: cos(G_l, RRᵀF̃_l).
        prediction: cos(G_l, D̃ỸỸᵀD̃F_l), section 6; the independence where no layer is above.
    """

    norm: Tensor
    independence: Tensor
    coupling: Tensor
    prediction: Tensor


def layer_structure(sums: LayerSums, counts: Tensor, residual_gram: Tensor) -> LayerStructure:
    """The structure of G_l. For the last layer it is that of `li2_lightning.theory.interaction.gradient_structure`.

    Args:
        sums: of the layer.
        counts: n_c, the number of samples of each class (…, C).
        residual_gram: RᵀR, …×C×C.
    """

    def cosine(of_gradient: Tensor, of_features: Tensor, gram: Tensor) -> Tensor:
        # ⟨G, MMᵀF⟩ = ⟨MᵀG, MᵀF⟩ and ‖MMᵀF‖² = ⟨MᵀF, MᵀM·MᵀF⟩.
        form = inner(of_features, gram.to(of_features.dtype) @ of_features).clamp_min(0).sqrt()
        return ratio(inner(of_gradient, of_features), sums.gradient_norm * form)

    return LayerStructure(
        norm=sums.gradient_norm,
        independence=cosine(sums.target_gradient, sums.target_features, target_gram(counts, counts)),
        coupling=cosine(sums.residual_gradient, sums.residual_features, residual_gram),
        prediction=cosine(sums.gated_gradient, sums.gated_features, target_gram(counts, sums.gate_squares)),
    )


def target_gram(counts: Tensor, squares: Tensor) -> Tensor:
    """ỸᵀD̃²Ỹ, …×C×C.

    Args:
        counts: n_c (…, C).
        squares: Σ d_i² over the samples of each class (…, C); ``counts`` themselves for D̃ = I.
    """
    p = counts / counts.sum(dim=-1, keepdim=True)
    cross = p[..., :, None] * squares[..., None, :]
    total = squares.sum(dim=-1)[..., None, None]
    return torch.diag_embed(squares) - cross - cross.mT + total * p[..., :, None] * p[..., None, :]


def label_share(target_features: Tensor, norms: Tensor, counts: Tensor) -> Tensor:
    """The share of each node's variance that lies between the classes, (…, K); (C−1)/(n−1) on average by chance.

    Args:
        target_features: ỸᵀF, …×C×K; row c is n_c times the mean of class c minus the mean of all samples.
        norms: ‖f̃_j‖², (…, K); a constant node has NaN.
        counts: n_c (…, C).
    """
    between = (squared_magnitudes(target_features) / counts.clamp_min(1)[..., None]).sum(dim=-2)
    return ratio(between, norms)


def isometry(weights: Tensor) -> Tensor:
    """cos(AAᴴ, I) = tr(AAᴴ)/(√K‖AAᴴ‖), (…) from …×K×K: 1 where AAᴴ ∝ I; 1/√2 for wide random square matrices."""
    gram = weights @ weights.mH
    trace = squared_magnitudes(weights).sum(dim=(-2, -1))
    return trace / (math.sqrt(weights.shape[-2]) * squared_magnitudes(gram).sum(dim=(-2, -1)).sqrt())


def below_random_layer(kernel: Tensor, features: Tensor) -> Tensor:
    """The mean of G_l below one layer of ReLU nodes with standard Gaussian weights A, per node of that layer; n×K.

    With G_{l+1} = TF_{l+1}, T = ỸỸᵀ, row i of G_l is

        Σ_j T_ij [(π−θ_ij)/2π · f_j + sin θ_ij/2π · ‖f_j‖/‖f_i‖ · f_i],      θ_ij the angle of f_i and f_j,

    by Stein's identity E[g(a)a] = E[∇g(a)] for g(a) = σ'(a·f_i)σ(a·f_j). The first term is D̃TD̃F_l with the gates of
    each pair of samples instead of one gate a sample (θ = π/2: d = ½); the second term is along f_i itself.

    Args:
        kernel: T, n×n.
        features: F_l, n×K, real, without a zero row.
    """
    norms = torch.linalg.vector_norm(features, dim=-1)
    directions = features / norms[..., None]
    angles = torch.arccos((directions @ directions.mT).clamp(-1, 1))
    along_others = kernel * (math.pi - angles) / (2 * math.pi)
    along_itself = kernel * torch.sin(angles) / (2 * math.pi) * norms[..., None, :] / norms[..., :, None]
    reaching: Tensor = along_others @ features + along_itself.sum(dim=-1, keepdim=True) * features
    return reaching
