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
        upper: what only a layer above the first one has; else None.
    """

    structure: LayerStructure
    target_features: Tensor
    label_shares: Tensor
    upper: UpperLayer | None = None


@dataclass(frozen=True)
class UpperLayer:
    """A layer on top of another layer.

    Attributes:
        weights: A_l from the layer below, …×K×K.
        input_sums: Xᵀz_l, …×kM×K.
        energies: E of each node on its own inputs at unit norm, (…, K).
    """

    weights: Tensor
    input_sums: Tensor
    energies: Tensor


def measure_layers(state: StepState) -> list[LayerRow]:
    """Every hidden layer of a row, the first one first.

    The last layer has the quantities of the row itself. The layers below are computed again, with G_l by autograd. All
    ranks call this function at the same row, since batch norm and every sum take the rows of all of them.
    """
    whole, counts = state.structure, state.class_counts.to(state.accumulation_dtype)
    last = LayerRow(
        LayerStructure(whole.norm, whole.independence, whole.coupling, prediction=whole.independence),
        state.target_features,
        label_share(state.target_features, state.feature_norms, counts),
    )
    network = state.network
    if not (isinstance(network, TwoLayerNetwork) and network.config.hidden_layers):
        return [last]
    return _Layers(state, network).measure(last)


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


class _Layers:
    """The layers of this rank's rows, and the gradients that reach the layers below the last one."""

    def __init__(self, state: StepState, network: TwoLayerNetwork) -> None:
        state.check_weights()
        self._state, self._network = state, network
        rows = share(state.targets.shape[-1])
        self._labels, self._tokens = state.targets[..., rows], state.tokens[..., rows, :]
        self._residual = state.residual[..., rows, :]
        with torch.enable_grad():
            layers = network.layers(self._tokens)
            features = [layer.features for layer in layers]
            driven = backpropagated_gradient(self._residual, state.readout).to(features[-1].dtype)
            self._gradients = torch.autograd.grad(features[-1], features[:-1], driven)
        self._features = [at_least_single(F) for F in features]
        self._pre_activations = [at_least_single(layer.pre_activation) for layer in layers]

    @torch.no_grad()
    def measure(self, last: LayerRow) -> list[LayerRow]:
        """All layers, with what an upper layer has added to ``last``."""
        weights, gates, rows = self._network.hidden_weights(), self._gates(), []
        for index, G in enumerate(self._gradients):
            row = self._measure(self._features[index], G, gates[index])
            rows.append(row if index == 0 else self._on_top(index, weights[index - 1], row))
        return [*rows, self._on_top(len(rows), weights[-1], last)]

    def _gates(self) -> list[Tensor]:
        """The diagonal of D̃ of each layer, (…, n); ones where D̃ is not defined (`has_gates`)."""
        gates = [torch.ones_like(self._residual[..., 0])]
        for z in self._pre_activations[:0:-1]:
            slope = self._network.activation.derivative(z).mean(dim=-1) if has_gates(self._network) else 1
            gates.append(gates[-1] * slope)
        return gates[::-1]

    def _measure(self, F: Tensor, G: Tensor, gates: Tensor) -> LayerRow:
        state = self._state
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
        return LayerRow(structure, features, label_share(features, spread, counts))

    def _on_top(self, index: int, weights: Tensor, row: LayerRow) -> LayerRow:
        num_tokens, z = self._network.num_tokens, self._pre_activations[index]
        by_operand = [sum_by_class(z, tokens, num_tokens) for tokens in self._tokens.unbind(dim=-1)]
        (sums,) = sum_over_ranks(torch.cat(by_operand, dim=-2))
        upper = UpperLayer(weights, self._widen(sums), self._energies(index, weights, row.target_features))
        return LayerRow(row.structure, row.target_features, row.label_shares, upper)

    def _energies(self, index: int, weights: Tensor, target_features: Tensor) -> Tensor:
        """E of the nodes of an upper layer at unit norm, ½‖Ỹᵀσ(F_{l−1}w)‖² with w a column of A_l, (…, K)."""
        activation, norms = self._network.activation, column_norms(weights)
        if activation.degree is not None and not self._network.config.batch_norm:
            return unit_energy(energy(target_features), norms, activation.degree)
        unit = torch.where(norms > 0, 1 / norms, torch.nan).unsqueeze(-2) * weights
        (sums,) = sum_over_ranks(self._by_class(activation(self._features[index - 1] @ unit)))
        return energy(self._centered(sums))

    def _widen(self, sums: Tensor) -> Tensor:
        wide = self._state.accumulation_dtype
        return sums.to(wide.to_complex() if sums.is_complex() else wide)

    def _centered(self, class_sums: Tensor) -> Tensor:
        return self._widen(center_sums(class_sums, self._state.class_counts))

    def _by_class(self, rows: Tensor) -> Tensor:
        """YᵀM for rows M of this rank, …×C×anything."""
        return sum_by_class(rows, self._labels, self._state.outputs.shape[-1])
