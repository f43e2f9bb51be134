"""One row: everything that is known about the weights after ``step`` updates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from li2_lightning.data import Rows
from li2_lightning.losses import Loss, one_hot
from li2_lightning.network import Activity, Features, Network, TwoLayerNetwork
from li2_lightning.theory.interaction import GradientGrams, GradientStructure, gradient_structure
from li2_lightning.theory.lazy import backpropagated_gradient, center, residual


class FeatureSums:
    """What one pass over F adds up, a block of rows at a time.

    Args:
        targets: labels of all rows (n,).
        num_classes: C.
    """

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        self.targets, self.num_classes = targets, num_classes
        self.rows = 0
        self._classes = self._squares = torch.empty(0)

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """The next rows, b × K."""
        F = _at_least_single(features)
        if self.rows == 0:
            self._classes = F.new_zeros(self.num_classes, F.shape[1])
            # Summed over rows at the end: adding blocks up is a third of the work of summing each.
            self._squares = torch.zeros_like(F.real)
        self._classes.index_add_(0, self.targets[self.rows : self.rows + len(F)], F)
        for part in (F.real, F.imag) if F.is_complex() else (F,):
            self._squares[: len(F)].addcmul_(part, part)
        self.rows += len(F)

    @property
    def classes(self) -> Tensor:
        """YᵀF, C × K."""
        return self._classes

    def squares(self, dtype: torch.dtype) -> Tensor:
        """Σ_i |f_ij|², (K,)."""
        return self._squares.sum(dim=0, dtype=dtype)


class StepState:
    """The weights, features and outputs of row ``step``, and what is derived from them, each at most once.

    All of it is about the training rows, in the order of the data module. Ratios and small matrices are in float64
    (float32 where the device has none). For complex features every transpose is a conjugate transpose.

    The blocked kernel keeps no features. What callbacks need of them mostly comes from sums taken while they passed
    (`sums`), from another pass (`mean_products`, `feature_blocks`) and from `node_features`; `features` computes them
    whole. All of them belong to the weights of this row: ask during ``on_step_state``, not after the update.

    Attributes:
        step: t; the weights are those after t updates.
        outputs: Ŷ, n × C, real.
        targets: labels, (n,).
        network: with the weights of this row.
        readout_gradient: ∂L/∂V over all training rows where the training step has just computed it, else None.
        columns: what goes into the row; callbacks add theirs with `log`.

    Args:
        activity: of the forward pass over ``rows``.
        rows: the training rows.
        loss: the training loss.
        sums: taken in that forward pass; None: taken in a pass of their own where somebody asks.
    """

    def __init__(
        self,
        step: int,
        activity: Activity,
        rows: Rows,
        network: Network,
        loss: Loss,
        sums: FeatureSums | None = None,
    ) -> None:
        self.step = step
        self.outputs = activity.outputs.detach()
        self.targets = rows.labels
        self.network = network
        self.readout_gradient: Tensor | None = None
        self.columns: dict[str, Tensor | float] = {}
        self._rows, self._loss, self._sums = rows, loss, sums
        self._kept = activity.features
        self._versions = self._weight_versions()

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
    @torch.no_grad()
    def _features(self) -> Features:
        features = self._kept
        if features is None:
            self._check_weights()
            features = self.network.compute_features(self._rows.tokens)
        last = _at_least_single(features.last)
        return Features(last, last if features.first is features.last else _at_least_single(features.first))

    @property
    def _has_features(self) -> bool:
        """Whether the features stand in memory: kept by the forward pass, or asked for before."""
        return self._kept is not None or "_features" in self.__dict__

    @property
    def features(self) -> Tensor:
        """F, n × K."""
        return self._features.last

    @property
    def input_features(self) -> Tensor:
        """Features of the first hidden layer, n × K; `features` itself without extra layers."""
        return self._features.first

    @torch.no_grad()
    def feature_blocks(self) -> Iterator[Tensor]:
        """F, some rows at a time in their order: cheaper than `features`, since it stays in cache."""
        if self._has_features:
            yield self.features
            return
        self._check_weights()
        yield from self.network.feature_blocks(self._rows.tokens)

    @torch.no_grad()
    def node_features(self, nodes: Tensor) -> Tensor:
        """Some columns of F, n × S.

        Args:
            nodes: their indices, (S,).
        """
        if self._has_features or not isinstance(self.network, TwoLayerNetwork):
            return self.features[:, nodes]
        self._check_weights()
        return self.network.node_features(self._rows.tokens, self.network.input_weights()[:, nodes])

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
    def sums(self) -> FeatureSums:
        """Sums over the rows of F."""
        if self._sums is not None:
            return self._sums
        sums = FeatureSums(self.targets, self.outputs.shape[1])
        for F in self.feature_blocks():
            sums.add(F)
        return sums

    @cached_property
    def _unseen(self) -> Tensor | None:
        """δ (n,), see `Loss.unseen`."""
        return self._loss.unseen(self.outputs, self.targets)

    @cached_property
    def mean_products(self) -> tuple[Tensor, Tensor | None]:
        """Fμ̄ (n,), and Fᴴδ (K,) where the loss leaves δ of the residual unseen (`Loss.unseen`): one pass over F."""
        unseen, mean = self._unseen, self.feature_means.conj()
        projections, driven = [], torch.zeros_like(mean)
        start = 0
        for F in self.feature_blocks():
            projections.append(F @ mean)
            if unseen is not None:
                driven.add_(F.mT @ unseen[start : start + len(F)].to(F.dtype))
            start += len(F)
        return torch.cat(projections), None if unseen is None else driven.conj()

    @property
    def class_sums(self) -> Tensor:
        """YᵀF, C × K: a segment sum over labels, not a product with zeros."""
        return self.sums.classes

    @cached_property
    def feature_means(self) -> Tensor:
        """μ = Fᵀ1/n, (K,)."""
        return self.class_sums.sum(dim=0) / len(self.targets)

    @cached_property
    def feature_norms(self) -> Tensor:
        """‖f̃_j‖² of every centred feature, (K,), in `precise`."""
        centered = (
            self.sums.squares(self.precise) - len(self.targets) * self.feature_means.abs().to(self.precise).square()
        )
        return centered.clamp_min(0)

    @cached_property
    def target_features(self) -> Tensor:
        """A = ỸᵀF̃, C × K (= ỸᵀF, since Ỹ is centred)."""
        return _center_sums(self.class_sums, self.class_counts)

    @cached_property
    def target_input_features(self) -> Tensor:
        """ỸᵀF of the first hidden layer, C × K; `target_features` itself without extra layers."""
        if self._kept is None or self._kept.first is self._kept.last:
            return self.target_features
        sums = _class_sums(self.input_features, self.targets, self.outputs.shape[1])
        return _center_sums(sums, self.class_counts)

    @cached_property
    def residual_features(self) -> Tensor:
        """Q = F̃ᴴR, K × C (= FᴴR, since R is centred).

        Where the step has just computed ∂L/∂V, it is that but for terms of rank one: with ∂L/∂Ŷ = −(2/n)D
        (`Loss.error`), FᴴD = −(n/2β)·∂L/∂V, and R = P₁⊥(D + δ1ᵀ) (`Loss.unseen`).
        """
        error = self._loss.error(self.outputs, self.targets)
        if error is None or self.readout_gradient is None:
            products: Tensor | float = 0.0
            start = 0
            for F in self.feature_blocks():
                rows = self.residual[start : (start := start + len(F))]
                # In this order the long dimension is read along the rows of F.
                products = products + rows.to(F.dtype).mT @ F
            assert isinstance(products, Tensor)
            return products.mH
        n, beta = len(self.targets), self.network.config.output_scale
        mean = self.feature_means.conj()
        driven = self.readout_gradient * (-n / (2 * beta)) - torch.outer(mean, error.sum(dim=0).to(mean.dtype))
        if self._unseen is not None:
            _, along = self.mean_products
            assert along is not None
            driven = driven + (along - self._unseen.sum() * mean)[:, None]
        return driven

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
        classes = self.outputs.shape[1]
        outputs = center(self.outputs)
        return gradient_structure(
            self.target_features,
            self.residual_features,
            self.readout.to(self.target_features.dtype),
            GradientGrams(
                residual=self.residual_gram,
                target=self._target_gram(),
                residual_target=_class_sums(self.residual, self.targets, classes).mT.to(self.precise),
                residual_output=(self.residual.mT @ outputs).to(self.precise),
                target_output=_class_sums(outputs, self.targets, classes).to(self.precise),
            ),
        )

    def _weight_versions(self) -> list[int]:
        return [parameter._version for parameter in self.network.parameters()]

    def _check_weights(self) -> None:
        if self._weight_versions() != self._versions:
            raise RuntimeError(
                f"The features of row {self.step} belong to weights that are gone; ask for them in on_step_state."
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
