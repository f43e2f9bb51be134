"""Every hidden layer of a row: sums over its features and over the gradient G_l that reaches them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from li2_lightning.distributed.collectives import share, sum_over_ranks
from li2_lightning.measurement.feature_sums import at_least_single
from li2_lightning.measurement.step_state import StepState, center_sums, sum_by_class
from li2_lightning.networks.base import Network
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.theory.depth import LayerStructure, LayerSums, label_share, layer_structure
from li2_lightning.theory.energy import column_norms, energy, unit_energy
from li2_lightning.theory.lazy import backpropagated_gradient


@dataclass(frozen=True)
class LayerRow:
    """One hidden layer l of a row, over the training rows of all ranks; in a stack with a leading axis.

    Attributes:
        structure: norm and cosines of G_l.
        target_features: ỸᵀF_l, …×C×K.
        label_shares: the share of each node's variance that lies between the classes, (…, K).
        input_sums: Xᵀz_l, …×kM×K; None where the layer has no pre-activation.
        weights: A_l from the layer below, …×K×K; None for the first layer, whose inputs are one-hots.
        energies: E of each node on its own inputs at unit norm, (…, K); None where ``weights`` are.
    """

    structure: LayerStructure
    target_features: Tensor
    label_shares: Tensor
    input_sums: Tensor | None
    weights: Tensor | None
    energies: Tensor | None


def measure_layers(state: StepState) -> list[LayerRow]:
    """Every hidden layer of a row, the first one first, computed again from the weights, with G_l by autograd.

    All ranks call it at the same row, since batch norm and every sum take the rows of all of them.
    """
    return _Layers(state).measure()


class _Layers:
    """The layers of this rank's rows, and the gradients that reach them."""

    def __init__(self, state: StepState) -> None:
        state.check_weights()
        self._state = state
        rows = share(state.targets.shape[-1])
        self._labels, self._tokens = state.targets[..., rows], state.tokens[..., rows, :]
        self._residual = state.residual[..., rows, :]
        with torch.enable_grad():
            layers = state.network.layers(self._tokens)
            last, below = layers[-1].features, [layer.features for layer in layers[:-1]]
            driven = backpropagated_gradient(self._residual, state.readout).to(last.dtype)
            self._gradients = [*(torch.autograd.grad(last, below, driven) if below else ()), driven]
        self._features = [at_least_single(layer.features) for layer in layers]
        self._pre_activations = [
            None if layer.pre_activation is None else at_least_single(layer.pre_activation) for layer in layers
        ]

    @torch.no_grad()
    def measure(self) -> list[LayerRow]:
        weights = [None, *self._state.network.hidden_weights()]
        return [self._measure(index, A, d) for index, (A, d) in enumerate(zip(weights, self._gates(), strict=True))]

    def _gates(self) -> list[Tensor]:
        """The diagonal of D̃ for each layer, (…, n); ones where D̃ is not defined (`has_gates`)."""
        network, gates = self._state.network, [torch.ones_like(self._residual[..., 0])]
        for z in self._pre_activations[:0:-1]:
            if has_gates(network):
                assert isinstance(network, TwoLayerNetwork)
                assert z is not None
                gates.append(gates[-1] * network.activation.derivative(z).mean(dim=-1))
            else:
                gates.append(gates[-1])
        return gates[::-1]

    def _measure(self, index: int, weights: Tensor | None, gates: Tensor) -> LayerRow:
        state, F, G = self._state, self._features[index], self._gradients[index]
        wide, d, R = state.accumulation_dtype, gates[..., None].to(F.dtype), self._residual.to(F.dtype)
        sums = sum_over_ranks(
            *(self._by_class(rows) for rows in (F, G, d * F, d * G, gates.to(wide).square()[..., None])),
            R.mT @ F,
            R.mT @ G,
            G.abs().to(wide).square().sum(dim=(-2, -1)),
        )
        features, gradient, gated_features, gated_gradient = (self._centered(part) for part in sums[:4])
        counts = state.class_counts.to(wide)
        structure = layer_structure(
            LayerSums(
                target_features=features,
                target_gradient=gradient,
                residual_features=self._widen(sums[5]),
                residual_gradient=self._widen(sums[6]),
                gated_features=gated_features,
                gated_gradient=gated_gradient,
                gate_squares=sums[4][..., 0],
                gradient_norm=sums[7].sqrt(),
            ),
            counts,
            state.residual_gram,
        )
        mean = sums[0].sum(dim=-2, keepdim=True) / state.targets.shape[-1]
        (spread,) = sum_over_ranks((F - mean).abs().to(wide).square().sum(dim=-2))
        return LayerRow(
            structure=structure,
            target_features=features,
            label_shares=label_share(features, spread, counts),
            input_sums=self._input_sums(self._pre_activations[index]),
            weights=weights,
            energies=None if weights is None else self._energies(index, weights, features),
        )

    def _widen(self, sums: Tensor) -> Tensor:
        wide = self._state.accumulation_dtype
        return sums.to(wide.to_complex() if sums.is_complex() else wide)

    def _centered(self, class_sums: Tensor) -> Tensor:
        return self._widen(center_sums(class_sums, self._state.class_counts))

    def _by_class(self, rows: Tensor) -> Tensor:
        """YᵀM for rows M of this rank, …×C×anything."""
        return sum_by_class(rows, self._labels, self._state.outputs.shape[-1])

    def _input_sums(self, z: Tensor | None) -> Tensor | None:
        if z is None:
            return None
        by_operand = [sum_by_class(z, tokens, self._state.network.num_tokens) for tokens in self._tokens.unbind(dim=-1)]
        (total,) = sum_over_ranks(torch.cat(by_operand, dim=-2))
        return self._widen(total)

    def _energies(self, index: int, weights: Tensor, target_features: Tensor) -> Tensor:
        """E of the nodes of an upper layer at unit norm, ½‖Ỹᵀσ(F_{l−1}w)‖² with w a column of A_l, (…, K)."""
        network = self._state.network
        assert isinstance(network, TwoLayerNetwork)
        norms = column_norms(weights)
        if network.activation.degree is not None and not network.config.batch_norm:
            return unit_energy(energy(target_features), norms, network.activation.degree)
        unit = torch.where(norms > 0, 1 / norms, torch.nan).unsqueeze(-2) * weights
        (sums,) = sum_over_ranks(self._by_class(network.activation(self._features[index - 1] @ unit)))
        return energy(self._centered(sums))


def has_gates(network: Network) -> bool:
    """Whether D̃ of section 6 is defined: real nodes with an activation, and no batch norm between the layers."""
    return isinstance(network, TwoLayerNetwork) and not (network.config.batch_norm or network.W.is_complex())


def input_inverse(tokens: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """(XᵀX)⁺ of the operands of some rows (…×n×k), …×kM×kM; X has a one-hot for each operand.

    (XᵀX)⁺Xᵀz = X⁺z is the least-squares fit of z by the one-hots: what of it is a sum of functions of single operands.
    """
    X = functional.one_hot(tokens, num_tokens).flatten(-2).to(dtype)
    inverse: Tensor = torch.linalg.pinv(X.mT @ X, hermitian=True)
    return inverse
