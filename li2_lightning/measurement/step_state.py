"""One row: what is measured of the weights after ``step`` updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from li2_lightning.data import Rows
from li2_lightning.distributed.collectives import gather_rows, share, sum_over_ranks
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.losses import Loss, one_hot
from li2_lightning.measurement.feature_sums import FeatureSums, at_least_single
from li2_lightning.measurement.parts import accumulation_dtype, columns_of_runs, part_of_run, quantity
from li2_lightning.networks.base import Activity, Network
from li2_lightning.networks.kernel import Places
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.theory.features import feature_shares
from li2_lightning.theory.interaction import GradientGrams, GradientStructure, gradient_structure
from li2_lightning.theory.lazy import backpropagated_gradient, center

# Attributes that a run of a stack takes from those of the whole stack, as its part of them.
PARTS = ("outputs", "targets", "readout_gradient", "_rows", "_kept_features")


class StepState:
    """The weights, features and outputs of row ``step``, and quantities derived from them, each computed at most once.

    Every quantity is about the training rows of all ranks, in the order of the data module. Each rank sums over its own
    rows and the sums are added, so a quantity must be read on every rank. Ratios and small matrices are in float64
    (float32 on a device without float64). For complex features every transpose is a conjugate transpose.

    The blocked kernel stores no features. Most callbacks need only sums over them, which are taken while the training
    step computes them (`class_sums`, `feature_norms`, `mean_spread`, `residual_features`), or a few nodes (`gram`).
    `features` computes them whole, on every rank. All quantities belong to the weights of this row: read them in
    ``on_step_state``, before the update.

    A stack of runs has one such object for all of them, in which every tensor has a leading axis (`whole`), and a
    callback gets the part of its run (`split`).

    Attributes:
        step: t; the weights are those after t updates.
        is_last: whether this is the last row of the run, whatever ends the run.
        outputs: Ŷ, n × C, real.
        targets: labels, (n,).
        network: with the weights of this row.
        readout_gradient: ∂L/∂V over all training rows where the training step has computed it for this row, else None.
        columns: name → value of every column of the row; a callback adds its columns with `log`.
        whole: the object of the whole stack; None in that object itself, and for a run that is trained by itself.
        place: the position of the run in the stack.

    Args:
        activity: result of the forward pass over this rank's share of ``rows``.
        rows: the training rows of all ranks.
        loss: the training loss.
        sums: the sums of that forward pass; None: they take a pass of their own when a callback needs them.
        group: that of the task, if there is one.
    """

    def __init__(
        self,
        step: int,
        activity: Activity,
        rows: Rows,
        network: Network,
        loss: Loss,
        sums: FeatureSums | None = None,
        group: FiniteGroup | None = None,
    ) -> None:
        self.step = step
        self.is_last = False
        self.outputs = gather_rows(activity.outputs.detach())
        self.targets = rows.labels
        self.network = network
        self.readout_gradient: Tensor | None = None
        self.columns: dict[str, Tensor | float] = {}
        self.whole: StepState | None = None
        self.place = 0
        self._rows, self._loss, self._sums, self._group = rows, loss, sums, group
        self._kept_features = activity.features
        self._versions = network.write_counts()

    def split(self, networks: Sequence[Network]) -> list[StepState]:
        """The object of each run of a stack.

        Args:
            networks: the network of each run.
        """
        runs = []
        for place, (network, columns) in enumerate(
            zip(networks, columns_of_runs(self.columns, len(networks)), strict=True)
        ):
            run = StepState.__new__(StepState)
            vars(run).update(
                step=self.step, is_last=self.is_last, columns=columns, whole=self, place=place, network=network,
                _loss=self._loss, _sums=None,
            )  # fmt: skip
            runs.append(run)
        return runs

    def __getattr__(self, name: str) -> Any:
        # A run of a stack takes its part of a tensor when somebody asks for it.
        if name not in PARTS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        whole = self.__dict__["whole"]
        value = getattr(whole, name)
        value = value.of_run(self.place) if name == "_rows" else part_of_run(value, self.place)
        self.__dict__[name] = value
        return value

    @property
    def tokens(self) -> Tensor:
        """The operands of the training rows, …×n×k."""
        return self._rows.tokens

    @property
    def is_stack(self) -> bool:
        """Whether this object is that of a whole stack, in which every tensor has a leading axis."""
        return self.outputs.ndim > 2

    @property
    def output_scale(self) -> float | Tensor:
        """β, a number; in a stack whose runs differ in it, (N,)."""
        scale = self.network.output_scale
        return scale.flatten() if isinstance(scale, Tensor) else scale

    def log(self, name: str, value: Tensor | float) -> None:
        """Add a column to this row. NaN means undefined and becomes an empty cell.

        Raises:
            ValueError: the row has a column of this name.
        """
        if name in self.columns:
            raise ValueError(f"Column {name!r} is logged twice in row {self.step}; give one of them another name.")
        self.columns[name] = value

    def log_all(self, columns: Mapping[str, Tensor | float]) -> None:
        """`log` for several columns."""
        if self.columns.keys().isdisjoint(columns):
            self.columns.update(columns)
        else:
            for name, value in columns.items():
                self.log(name, value)

    @property
    def readout(self) -> Tensor:
        """βV, …×K×C: Ŷ = Re(F·readout)."""
        return self.network.readout

    @property
    def accumulation_dtype(self) -> torch.dtype:
        """`parts.accumulation_dtype` on the device of the row."""
        return accumulation_dtype(self.outputs.device)

    def start_second_pass(self) -> None:
        """Prepare the sums, where there are any, for a second pass over the features, such as a backward pass."""
        if self._sums is not None:
            delta = self._ignored_class_mean
            self._sums.start_second_pass(self.feature_means.conj(), None if delta is None else self._share_of(delta))

    @quantity
    @torch.no_grad()
    def features(self) -> Tensor:
        """F, n × K."""
        if self._kept_features is not None:
            return gather_rows(at_least_single(self._kept_features.last))
        self.check_weights()
        blocks = [F.flatten(0, -2) for F in self.network.feature_blocks(self._rows.tokens)]
        return at_least_single(torch.cat(blocks)).view(*self.targets.shape, -1)

    @property
    def _share_in_memory(self) -> Tensor | None:
        """F of this rank's rows if it is in memory, from the forward pass or from `features`; else None."""
        if self._kept_features is not None:
            return at_least_single(self._kept_features.last)
        return self.features[..., share(self._count), :] if "features" in self.__dict__ else None

    @torch.no_grad()
    def share_blocks(self) -> Iterator[Tensor]:
        """F of this rank's rows in order, a block at a time; cheaper than `features`, since a block stays in cache.

        In a stack a block has rows of one run (b × K) or all rows of the next runs (g × n × K).
        """
        features = self._share_in_memory
        if features is not None:
            yield features
        else:
            self.check_weights()
            yield from self.network.feature_blocks(self._rows.share().tokens)

    @torch.no_grad()
    def gram(self, nodes: Tensor | None = None) -> Tensor:
        """F̃ᴴF̃, of all nodes in at least `accumulation_dtype`, of some nodes (…×S×S) in the dtype of the features.

        Args:
            nodes: indices of the nodes, …×S, one matrix for each list of S (in a stack N×…×S); None: all nodes (K×K),
                which costs more than a training step.
        """
        drawn = None if nodes is None else nodes.flatten(1 if self.is_stack else 0)
        means = self.feature_means if drawn is None else self.feature_means.gather(-1, drawn)
        size = means.shape[-1] if nodes is None else nodes.shape[-1]
        # One run without a leading axis is run 0 of its blocks, and the lists of nodes follow each other.
        means = means if self.is_stack else means[None]
        products = means.new_zeros(len(means), means.shape[-1] // size, size, size)
        places = Places(self._share_of(self.targets).shape[-1])
        for F in self.share_blocks() if drawn is None else self._column_blocks(drawn):
            runs, _ = places.next(F)
            centered = F - means[runs].unsqueeze(-2)
            for place, columns in enumerate(centered.unflatten(-1, (-1, size)).unbind(-2)):  # type: ignore[no-untyped-call]
                products[runs, place] += columns.mH @ columns
        if nodes is None:
            products = products.to(torch.promote_types(products.dtype, self.accumulation_dtype))
        (total,) = sum_over_ranks(products)
        shape = self.feature_means.shape if nodes is None else nodes.shape
        return total.view(*shape, size)

    def _column_blocks(self, nodes: Tensor) -> Iterator[Tensor]:
        """The columns of F that belong to ``nodes``, for this rank's rows, in blocks like those of `share_blocks`."""
        if self._share_in_memory is None and isinstance(self.network, TwoLayerNetwork):
            self.check_weights()
            weights = _columns(self.network.input_weights(), nodes)
            yield from self.network.node_blocks(self._rows.share().tokens, weights)
        elif self.is_stack:
            yield _columns(self.features, nodes)
        else:
            yield from (block[:, nodes] for block in self.share_blocks())

    def _share_of(self, rows: Tensor) -> Tensor:
        """This rank's rows out of the rows of all ranks, (…, n)."""
        return rows[..., share(rows.shape[-1])]

    @quantity
    def one_hot_targets(self) -> Tensor:
        """Y, n × C."""
        return one_hot(self.targets, self.outputs.shape[-1], self.outputs.dtype)

    @quantity
    def centered_targets(self) -> Tensor:
        """Ỹ = P₁⊥Y, n × C."""
        return center(self.one_hot_targets)

    @quantity
    def _error(self) -> tuple[Tensor, Tensor]:
        """R, and the mean of Y − Ŷ over the rows, (…, C)."""
        error = self.one_hot_targets - self.outputs
        mean = error.mean(dim=-2)
        return error.sub_(mean.unsqueeze(-2)), mean

    @property
    def residual(self) -> Tensor:
        """R = P₁⊥(Y − Ŷ), n × C."""
        return self._error[0]

    @quantity
    def centered_features(self) -> Tensor:
        """F̃ = P₁⊥F, n × K. It costs a copy of the features; prefer the products below."""
        return center(self.features)

    @quantity
    def feature_gradient(self) -> Tensor:
        """G_F = RVᴴ, n × K. It costs a product of that size; `structure` has its norm and cosines without it."""
        return backpropagated_gradient(self.residual, self.readout)

    @quantity
    def node_shares(self) -> Tensor | None:
        """The share of each node in each block of the group (`feature_shares`), …×blocks×K.

        None without a block (no group, or one of a single element), or without nodes on the one-hots.
        """
        weights = self.network.input_weights()
        if weights is None or self._group is None or self._group.order == 1:
            return None
        return feature_shares(weights, self._group)

    @quantity
    def class_counts(self) -> Tensor:
        """Training rows of each class, (…, C)."""
        # torch.bincount makes the host wait for an accelerator, since the size of its result depends on the data.
        counts = self.outputs.new_zeros(*self.outputs.shape[:-2], self.outputs.shape[-1])
        return counts.scatter_add_(-1, self.targets, self.outputs.new_ones(self.targets.shape))

    @property
    def _local_sums(self) -> FeatureSums:
        """Sums over this rank's rows of F."""
        if self._sums is None:
            sums = FeatureSums(self._share_of(self.targets), self.outputs.shape[-1])
            for F in self.share_blocks():
                sums.add_first_pass(F)
            self._sums = sums
        return self._sums

    @quantity
    def _first_pass_sums(self) -> tuple[Tensor, Tensor]:
        """YᵀF (…×C×K), and Σ_i |f_ij|² in `accumulation_dtype` (…, K)."""
        classes, squares = sum_over_ranks(self._local_sums.class_sums, self._local_sums.squared_norms())
        return classes, squares

    @quantity
    def _ignored_class_mean(self) -> Tensor | None:
        """δ (n,), see `Loss.ignored_class_mean`."""
        return self._loss.ignored_class_mean(self.outputs, self.targets)

    @quantity
    def _second_pass_sums(self) -> tuple[Tensor, Tensor]:
        """‖F̃μ̄‖² in `accumulation_dtype`, and Fᴴδ (K,), zeros where `Loss.ignored_class_mean` is None."""
        sums = self._local_sums
        if not sums.second_pass_done:
            self.start_second_pass()
            sums.run_second_pass(self.share_blocks())
        centered = sums.projections - self.feature_means.abs().square().sum(dim=-1, keepdim=True)
        spread = torch.linalg.vector_norm(centered, dim=-1).to(self.accumulation_dtype).square()
        spread, weighted = sum_over_ranks(spread, sums.weighted_sums)
        return spread, weighted.conj()

    @property
    def mean_spread(self) -> Tensor:
        """‖F̃μ̄‖² with μ = `feature_means`, a scalar in `accumulation_dtype`."""
        return self._second_pass_sums[0]

    @property
    def class_sums(self) -> Tensor:
        """YᵀF, C × K: the sum of the features of each class."""
        return self._first_pass_sums[0]

    @quantity
    def feature_means(self) -> Tensor:
        """μ = Fᵀ1/n, (K,)."""
        return self.class_sums.sum(dim=-2) / self._count

    @quantity
    def feature_norms(self) -> Tensor:
        """‖f̃_j‖² of every centred feature, (K,), in `accumulation_dtype`."""
        of_means = self.feature_means.abs().to(self.accumulation_dtype).square()
        return (self._first_pass_sums[1] - self._count * of_means).clamp_min(0)

    @quantity
    def target_features(self) -> Tensor:
        """A = ỸᵀF̃, C × K (= ỸᵀF, since Ỹ is centred)."""
        return center_sums(self.class_sums, self.class_counts)

    @quantity
    def target_input_features(self) -> Tensor:
        """ỸᵀF of the first hidden layer, C × K; `target_features` itself without extra layers."""
        if self._kept_features is None or self._kept_features.first is self._kept_features.last:
            return self.target_features
        first = at_least_single(self._kept_features.first)
        (sums,) = sum_over_ranks(sum_by_class(first, self._share_of(self.targets), self.outputs.shape[-1]))
        return center_sums(sums, self.class_counts)

    @quantity
    def residual_features(self) -> Tensor:
        """Q = F̃ᴴR, K × C (= FᴴR, since R is centred).

        Where the training step has computed ∂L/∂V, Q is a multiple of it plus terms of rank one, and no product with F
        is needed: ∂L/∂Ŷ = −(2/n)D (`Loss.summed_error`) gives FᴴD = −(n/2β)·∂L/∂V, and R = P₁⊥(D + δ1ᵀ)
        (`Loss.ignored_class_mean`).
        """
        n, beta = self._count, self.network.output_scale
        error = self._loss.summed_error(n * self._error[1])
        if error is None or self.readout_gradient is None:
            return self._sum_residual_features()
        mean = self.feature_means.conj()
        left, right = [mean], [-error.to(mean.dtype)]
        if self._ignored_class_mean is not None:
            ignored = self._ignored_class_mean.sum(dim=-1, keepdim=True)
            left.append(self._second_pass_sums[1] - ignored * mean)
            right.append(torch.ones_like(right[0]))
        L, R = torch.stack(left, -1), torch.stack(right, -2)
        if isinstance(beta, Tensor):
            return L @ R - n / (2 * beta) * self.readout_gradient
        if self.is_stack:
            return torch.baddbmm(self.readout_gradient, L, R, beta=-n / (2 * beta))
        return torch.addmm(self.readout_gradient, L, R, beta=-n / (2 * beta))

    def _sum_residual_features(self) -> Tensor:
        """FᴴR as a product with the features of every rank."""
        products = torch.zeros_like(self.class_sums)
        # One run without a leading axis is run 0 of its blocks.
        by_run, residuals = (x if self.is_stack else x[None] for x in (products, self._share_of_residual()))
        places = Places(residuals.shape[1])
        for F in self.share_blocks():
            runs, rows = places.next(F)
            # RᵀF, not FᴴR: the product then reads F along its rows.
            by_run[runs] += residuals[runs, rows].to(F.dtype).mT @ F
        (total,) = sum_over_ranks(products)
        return total.mH

    def _share_of_residual(self) -> Tensor:
        return self.residual if self.is_stack else self.residual[share(len(self.residual))]

    @quantity
    def residual_gram(self) -> Tensor:
        """RᵀR, C × C."""
        return (self.residual.mT @ self.residual).to(self.accumulation_dtype)

    @quantity
    def structure(self) -> GradientStructure:
        """Norm and cosines of G_F (`li2_lightning.theory.interaction.gradient_structure`)."""
        sums = sum_by_class(self.residual, self.targets, self.outputs.shape[-1])
        return gradient_structure(
            self.target_features,
            self.residual_features,
            self.readout.to(self.target_features.dtype),
            GradientGrams(
                residual=self.residual_gram,
                counts=self.class_counts.to(self.accumulation_dtype),
                residual_target=sums.mT.to(self.accumulation_dtype),
            ),
        )

    @property
    def _count(self) -> int:
        """n, the training rows of all ranks."""
        return self.targets.shape[-1]

    def check_weights(self) -> None:
        if self.whole is not None:
            self.whole.check_weights()
        elif self.network.write_counts() != self._versions:
            raise RuntimeError(
                f"The features of row {self.step} belong to weights that are gone; ask for them in on_step_state."
            )


def _columns(matrix: Tensor, nodes: Tensor) -> Tensor:
    """The columns of a matrix (…×d×K) that belong to nodes (…, m)."""
    if matrix.ndim == 2:
        return matrix.index_select(1, nodes)
    return matrix.gather(-1, nodes.unsqueeze(-2).expand(-1, matrix.shape[-2], -1))


def sum_by_class(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """YᵀF, …×C×K."""
    sums = features.new_zeros(*labels.shape[:-1], num_classes, features.shape[-1])
    if labels.ndim > 1:
        labels = labels + num_classes * torch.arange(len(labels), device=labels.device)[:, None]
    sums.view(-1, features.shape[-1]).index_add_(0, labels.flatten(), features.reshape(-1, features.shape[-1]))
    return sums


def center_sums(class_sums: Tensor, counts: Tensor) -> Tensor:
    """ỸᵀF from YᵀF: subtract n_c/n times the sum over all rows from row c."""
    shares = (counts / counts.sum(dim=-1, keepdim=True)).to(class_sums.dtype)
    return class_sums - shares.unsqueeze(-1) * class_sums.sum(dim=-2, keepdim=True)
