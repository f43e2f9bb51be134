"""The forward passes over the rows of a run, or of a stack of runs, and the row of metrics that is measured in one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from li2_lightning.data import Rows
from li2_lightning.distributed.collectives import gather_rows, sum_over_ranks, world_size
from li2_lightning.losses import Loss, RunByRun, one_hot
from li2_lightning.measurement.feature_sums import FeatureSums
from li2_lightning.measurement.split_statistics import RowStatistics, add_ranks
from li2_lightning.measurement.step_state import StepState
from li2_lightning.networks.base import Activity, Moments, Network
from li2_lightning.plugins import takes_stacks
from li2_lightning.tasks.tasks import Task
from li2_lightning.theory.lazy import ridge_readout, solve_shifted


class SplitRows(Protocol):
    """The task and its rows of both splits; `li2_lightning.data.TableDataModule` has them."""

    task: Task
    train: Rows
    train_share: Rows
    test_share: Rows


@dataclass
class Reference:
    """What the outputs of any rows take from the training rows at the same weights.

    Attributes:
        outputs, labels: of this rank's training rows; the loss may fit an offset per class to them.
        moments: their statistics for batch norm.
    """

    outputs: Tensor
    labels: Tensor
    moments: tuple[Moments, ...]


class Passes:
    """Forward passes with one network; with a leading axis of runs for a stack.

    Args:
        network: the network, or `li2_lightning.networks.base.stacked`.
        loss: the training loss.
        data: the rows.
        precision: the context of a training step.
        ridge: η of the ridge readout, (N, 1) for a stack; None where V is trained.
        call: computes `Network.forward`; None is the network itself.
        runs: the number of runs of a stack; None for a single run.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        data: SplitRows,
        precision: Callable[[], AbstractContextManager[None]],
        ridge: float | Tensor | None = None,
        call: Callable[..., Activity] | None = None,
        runs: int | None = None,
    ) -> None:
        self.network, self.data, self.ridge = network, data, ridge
        self.loss = loss if runs is None or takes_stacks(type(loss)) else RunByRun(loss)
        self._precision, self._call = precision, call
        device = data.train.labels.device
        self._train_statistics, self._test_statistics = (RowStatistics(runs).to(device) for _ in range(2))

    def train(self, rows: Rows, is_full: bool, step: int | None) -> tuple[Tensor, StepState | None]:
        """The loss of each row of a training step, (…, n), and the row of metrics at its weights.

        Args:
            rows: a mini-batch, or where ``is_full`` this rank's training rows; one forward pass then serves both.
            step: the row of metrics; None where none is due.
        """
        if not is_full:
            state = self.row(step)
            return self.loss.fitted_rows(self._forward(rows.tokens).outputs, rows.labels), state
        sums = None if step is None else self._sums()
        activity = self._forward_training_rows(rows, sums)
        losses = self.loss.fitted_rows(activity.outputs, rows.labels)
        if step is None:
            return losses, None
        state = self._measure(step, activity, losses.detach(), sums)
        state.start_second_pass()
        return losses, state

    def row(self, step: int | None) -> StepState | None:
        """`measure` row ``step``; where it is None, only solve the ridge readout."""
        if step is not None:
            return self.measure(step)
        self.solve_readout()
        return None

    @torch.no_grad()
    def measure(self, step: int) -> StepState:
        """Measure row ``step`` by a forward pass of its own, in the precision of a training step."""
        with self._precision():
            sums = self._sums()
            activity = self._forward_training_rows(self.data.train_share, sums)
            losses = self.loss.fitted_rows(activity.outputs, self.data.train_share.labels)
            return self._measure(step, activity, losses, sums)

    @torch.no_grad()
    def reference(self) -> Reference:
        """What the outputs of any rows take from the training rows, at the present weights."""
        rows = self.data.train_share.to(self.network.V.device)
        with self._precision():
            activity = self._forward_training_rows(rows, None)
        return Reference(activity.outputs, rows.labels, activity.moments)

    @torch.no_grad()
    def evaluate(self, rows: Rows, reference: Reference) -> tuple[Tensor, Tensor]:
        """The loss of each of some rows, (n,), and their outputs, n × C, as for the test rows of a row of metrics."""
        with self._precision():
            outputs = self.network.evaluate(rows.tokens, reference.moments)
            outputs = self.loss.fitted_outputs(outputs, reference.outputs, reference.labels)
            return self.loss.rows(outputs, rows.labels), outputs

    @torch.no_grad()
    def solve_readout(self) -> None:
        """Set V to the ridge readout of the training rows at the present hidden weights; nothing where V is trained."""
        if self.ridge is not None:
            with self._precision():
                self._solve_readout(self.data.train_share)

    def _sums(self) -> FeatureSums | None:
        """An accumulator for the features of a forward pass; None where the network is compiled and cannot call it."""
        if self._call is not None:
            return None
        return FeatureSums(self.data.train_share.labels, self.network.V.shape[-1])

    @torch.no_grad()
    def _measure(self, step: int, activity: Activity, losses: Tensor, sums: FeatureSums | None) -> StepState:
        """Measure losses and accuracies of both splits; ``activity`` and ``losses`` are those of the training rows."""
        state = StepState(step, activity, self.data.train, self.network, self.loss, sums, self.data.task.group)
        train, test = self.data.train_share, self.data.test_share
        outputs, test_outputs = activity.outputs.detach(), self.network.evaluate(test.tokens, activity.moments)
        test_outputs = self.loss.fitted_outputs(test_outputs, outputs, train.labels)
        outputs = self.loss.fitted_outputs(outputs, outputs, train.labels)
        self._train_statistics.update(losses, outputs, train.labels)
        self._test_statistics.update(self.loss.rows(test_outputs, test.labels), test_outputs, test.labels)
        add_ranks(self._train_statistics, self._test_statistics)
        for split, statistics in (("train", self._train_statistics), ("test", self._test_statistics)):
            for name, value in statistics.compute().items():
                # torchmetrics drops the axis of a single run.
                state.log(f"{split}/{name}", value.reshape(losses.shape[:-1]))
            statistics.reset()
        return state

    def _forward(self, tokens: Tensor, sums: FeatureSums | None = None) -> Activity:
        return self.network(tokens, observe=sums) if self._call is None else self._call(tokens)

    def _forward_training_rows(self, rows: Rows, sums: FeatureSums | None) -> Activity:
        """A forward pass over all training rows; a ridge readout V is solved first."""
        if self.ridge is not None:
            self._solve_readout(rows)
        return self._forward(rows.tokens, sums)

    @torch.no_grad()
    def _solve_readout(self, rows: Rows) -> None:
        F = self.network.output_scale * self.network.compute_features(rows.tokens).last
        # The outputs are Re(FV) = Re F·Re V − Im F·Im V, a real problem of twice the width.
        real = torch.cat([F.real, -F.imag], dim=-1) if F.is_complex() else F
        Y = one_hot(rows.labels, self.network.V.shape[-1], real.dtype)
        assert self.ridge is not None
        V = _ridge_readout(*self.loss.ridge_problem(real, Y), self.ridge, rows.total)
        self.network.V.copy_(torch.complex(*torch.split(V, F.shape[-1], dim=-2)) if F.is_complex() else V)


def _ridge_readout(features: Tensor, targets: Tensor, ridge: float | Tensor, total: int) -> Tensor:
    """`ridge_readout` on the rows of all ranks, ``total`` in number; as there, the smaller of two systems is solved."""
    if world_size() == 1:
        return ridge_readout(features, targets, ridge)
    if total < features.shape[1]:
        return ridge_readout(gather_rows(features), gather_rows(targets), ridge)
    F, Y = features.double(), targets.double()
    gram, right = sum_over_ranks(F.mT @ F, F.mT @ Y)
    return solve_shifted(gram, right, ridge).to(features.dtype)
