"""One row: everything that is known about the weights after ``step`` updates."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from li2_lightning.losses import one_hot
from li2_lightning.network import EVALUATION_BLOCK, Activity, Network
from li2_lightning.theory.interaction import GradientStructure, gradient_structure
from li2_lightning.theory.lazy import backpropagated_gradient, center, residual


class StepState:
    """The weights, features and outputs of row ``step``, and what is derived from them, each at most once.

    All of it is about the training rows, in the order of the data module. Ratios and small matrices are in float64
    (float32 where the device has none). For complex features every transpose is a conjugate transpose.

    Attributes:
        step: t; the weights are those after t updates.
        features: F, n × K.
        outputs: Ŷ, n × C, real.
        input_features: features of the first hidden layer, n × K.
        targets: labels, (n,).
        network: with the weights of this row.
        columns: what goes into the row; callbacks add theirs with `log`.
    """

    def __init__(self, step: int, activity: Activity, targets: Tensor, network: Network) -> None:
        self.step = step
        self.features = _at_least_single(activity.features)
        self.outputs = activity.outputs.detach()
        same = activity.input_features is activity.features
        self.input_features = self.features if same else _at_least_single(activity.input_features)
        self.targets = targets
        self.network = network
        self.columns: dict[str, Tensor | float] = {}

    def log(self, name: str, value: Tensor | float) -> None:
        """Add a column to this row. NaN means undefined and becomes an empty cell.

        Raises:
            ValueError: the column is taken.
        """
        if name in self.columns:
            raise ValueError(f"Column {name!r} is logged twice in row {self.step}; give one of them another name.")
        self.columns[name] = value

    @property
    def readout(self) -> Tensor:
        """βV, K × C: Ŷ = Re(F·readout)."""
        return self.network.readout

    @property
    def precise(self) -> torch.dtype:
        """The real dtype of ratios and small matrices."""
        return torch.float32 if self.outputs.device.type == "mps" else torch.float64

    @cached_property
    def one_hot_targets(self) -> Tensor:
        """Y, n × C."""
        return one_hot(self.targets, self.outputs.shape[1], self.outputs.dtype)

    @cached_property
    def centered_targets(self) -> Tensor:
        """Ỹ = P₁⊥Y, n × C."""
        return center(self.one_hot_targets)

    @cached_property
    def residual(self) -> Tensor:
        """R = P₁⊥(Y − Ŷ), n × C."""
        return residual(self.outputs, self.one_hot_targets)

    @cached_property
    def centered_features(self) -> Tensor:
        """F̃ = P₁⊥F, n × K. Costs a copy of the features; prefer the products below."""
        return center(self.features)

    @cached_property
    def feature_gradient(self) -> Tensor:
        """G_F = RVᴴ, n × K. Costs a product of that size; its norms and cosines are in `structure` without it."""
        return backpropagated_gradient(self.residual, self.readout)

    @cached_property
    def class_counts(self) -> Tensor:
        """Training rows of each class, (C,)."""
        return torch.bincount(self.targets, minlength=self.outputs.shape[1]).to(self.outputs.dtype)

    @cached_property
    def class_sums(self) -> Tensor:
        """YᵀF, C × K: a segment sum over labels, not a product with zeros."""
        return _class_sums(self.features, self.targets, self.outputs.shape[1])

    @cached_property
    def feature_means(self) -> Tensor:
        """μ = Fᵀ1/n, (K,)."""
        return self.class_sums.sum(dim=0) / len(self.targets)

    @cached_property
    def feature_norms(self) -> Tensor:
        """‖f̃_j‖² of every centred feature, (K,), in `precise`."""
        # Squares in blocks that stay in cache; a norm over the long dimension costs thirty times as much.
        squares = sum(block.abs().square().sum(dim=0) for block in torch.split(self.features, EVALUATION_BLOCK))
        assert isinstance(squares, Tensor)
        centered = squares.to(self.precise) - len(self.targets) * self.feature_means.abs().to(self.precise).square()
        return centered.clamp_min(0)

    @cached_property
    def target_features(self) -> Tensor:
        """A = ỸᵀF̃, C × K (= ỸᵀF, since Ỹ is centred)."""
        return _center_sums(self.class_sums, self.class_counts)

    @cached_property
    def target_input_features(self) -> Tensor:
        """ỸᵀF of the first hidden layer, C × K; `target_features` itself without extra layers."""
        if self.input_features is self.features:
            return self.target_features
        sums = _class_sums(self.input_features, self.targets, self.outputs.shape[1])
        return _center_sums(sums, self.class_counts)

    @cached_property
    def residual_features(self) -> Tensor:
        """Q = F̃ᴴR, K × C (= FᴴR, since R is centred)."""
        # In this order the long dimension is read along the rows of F.
        return (self.residual.to(self.features.dtype).mT @ self.features).mH

    @cached_property
    def residual_gram(self) -> Tensor:
        """RᵀR, C × C."""
        return (self.residual.mT @ self.residual).to(self.precise)

    def _target_gram(self) -> Tensor:
        """ỸᵀỸ = diag(n_c) − n_c n_cᵀ/n, C × C."""
        counts = self.class_counts.to(self.precise)
        return torch.diag(counts) - torch.outer(counts, counts) / counts.sum()

    @cached_property
    def structure(self) -> GradientStructure:
        """Norm and cosines of G_F."""
        complex_or_real = self.precise.to_complex() if self.features.is_complex() else self.precise
        return gradient_structure(
            self.target_features.to(complex_or_real),
            self.residual_features.to(complex_or_real),
            self.readout.to(complex_or_real),
            self.residual_gram,
            _class_sums(self.residual, self.targets, self.outputs.shape[1]).mT.to(self.precise),
            self._target_gram(),
        )


def _class_sums(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """YᵀF, C × K."""
    return features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)


def _center_sums(class_sums: Tensor, counts: Tensor) -> Tensor:
    """ỸᵀF from YᵀF: row c loses its share n_c/n of the sum over all rows."""
    shares = (counts / counts.sum()).to(class_sums.dtype)
    return class_sums - shares[:, None] * class_sums.sum(dim=0)


def _at_least_single(features: Tensor) -> Tensor:
    """Detached, and in float32 where mixed precision left half of that; sums over samples need it."""
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))
