"""The LightningModule: training, evaluation and all diagnostics share one forward pass a step.

Row t describes the weights after t updates. It is measured inside step t, after the backward pass and before the
update, from the forward pass of the training step. The last row has no training step, so it takes a forward pass of its
own. On an accelerator the values of several rows are moved to the host together.

An optimizer with ``train()`` and ``eval()`` has two sets of weights. At the train point gradients are computed and
updates are made. From the backward pass to the update the weights are at the eval point: rows are measured there, by a
forward pass of their own, and checkpoints hold these weights.

Besides Lightning's hooks a callback may define:

* ``on_step_state(trainer, module, state)``: called once for each row, to add columns (`StepState.log`);
* ``on_row(trainer, module, row)``: called with each finished row on the host, in order; an undefined value is None, and
  values that the callback adds to the dictionary become part of the row;
* ``on_stage_transition(trainer, module, transition)``: called when a `li2_lightning.theory.stages.Transition` is
  declared;
* ``on_last_row(trainer, module)``: called once, after the ``on_row`` of the last row;
* ``on_interrupt(trainer, module)``: called when a signal stops the run at the weights of the newest row.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from li2_lightning._compat import has_gradient_hooks, is_step_overflow
from li2_lightning.cadence import is_marked
from li2_lightning.config.schema import PRECISIONS, NetworkConfig
from li2_lightning.data import Rows, TableDataModule
from li2_lightning.distributed.collectives import gather_rows, sum_over_ranks, world_size
from li2_lightning.distributed.strategy import SummingStrategy
from li2_lightning.errors import DivergenceError, InputError, Interrupted
from li2_lightning.losses import Loss, one_hot
from li2_lightning.measurement.feature_sums import FeatureSums
from li2_lightning.measurement.rows import rows_to_host
from li2_lightning.measurement.split_statistics import RowStatistics, add_ranks
from li2_lightning.measurement.step_state import StepState
from li2_lightning.networks.base import Activity, Network
from li2_lightning.runs.checkpoints import updates_left
from li2_lightning.theory.lazy import ridge_readout, solve_shifted

# Rows that collect on an accelerator before one transfer moves them to the host.
ROWS_PER_TRANSFER = 16


def call_hook(trainer: lightning.Trainer, name: str, *args: Any) -> None:
    """Call the hook ``name`` of this project on every callback that has it, in the order of the callbacks."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        hook: Callable[..., None] | None = getattr(callback, name, None)
        if hook is not None:
            hook(trainer, *args)


class Li2Module(lightning.LightningModule):
    """Trains a network on a `TableDataModule` and publishes one row after the other.

    Args:
        network: `li2_lightning.networks.base.Network`.
        loss: the training loss.
        optimizer: over the network's parameters.
        scheduler: stepped once after each update, or None.
        ridge: η of the ridge readout; None where V is trained.
        evaluate_every_n_steps: there are row 0, the rows of this cadence (`li2_lightning.cadence`), and the last row.
        stop_at_test_accuracy: the run ends with the update after the first row that reaches this accuracy; None: it
            never ends early.
        compile_network: run the network through ``torch.compile``.
        config: the plain config, kept in every checkpoint.
        inputs: digests of the input files (`li2_lightning.config.identity.input_digests`), kept in every checkpoint.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        ridge: float | None = None,
        evaluate_every_n_steps: int | str = 1,
        stop_at_test_accuracy: float | None = None,
        compile_network: bool = False,
        config: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.ridge = ridge
        self.evaluate_every_n_steps = evaluate_every_n_steps
        self.stop_at_test_accuracy = stop_at_test_accuracy
        self.config, self.inputs = dict(config or {}), dict(inputs or {})
        self.last_row = -1
        self._finite_row: int | None = None
        # Whether the last row is published, and whether the run was asked to stop before that row.
        self._ended = self._stopped = False
        # Whether the run continues from a checkpoint that was made one update before a stop.
        self._stops_next = False
        # The handler of a signal sets this number; the run stops after a backward pass, when its state is consistent.
        self.stop_signal: int | None = None
        self.signal_handlers: dict[int, Any] = {}
        self.train_statistics, self.test_statistics = RowStatistics(), RowStatistics()
        self.optimizer, self.scheduler = optimizer, scheduler
        self._has_eval_point = all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))
        if self._has_eval_point and network.config.normalize_weights:
            raise InputError(
                "network.normalize_weights=true acts on the weights that are trained; this optimizer is evaluated at "
                "others, which are not normalized; choose another optimizer or leave it false."
            )
        # While the weights are at the eval point: a copy of the train point, since optimizer.train() rounds.
        self._train_point: dict[str, Tensor] = {}
        # In a tuple: a module as an attribute would put its weights into every checkpoint a second time.
        self._callable: tuple[Callable[..., Activity]] = (torch.compile(network) if compile_network else network,)
        self._state: StepState | None = None
        self._waiting: list[dict[str, Tensor | float]] = []

    @property
    def network_config(self) -> NetworkConfig:
        """The ``network`` section."""
        return self.network.config

    # -- training ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer | OptimizerLRSchedulerConfig:
        if self.scheduler is None:
            return self.optimizer
        return {
            "optimizer": self.optimizer,
            "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"},
        }

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        data, step = self.data, self.global_step
        due = self._is_due() and not self._has_eval_point
        self._to_train_point()
        if data.is_full_batch:
            sums = self._sums() if due else None
            activity = self._forward_training_rows(batch, sums)
            losses = self.loss.fitted_rows(activity.outputs, batch.labels)
            if due:
                self._state = self._measure(step, data, activity, losses.detach(), sums)
                self._state.start_second_pass()
        else:
            if due:
                self._state = self._measure_by_own_pass(step, data)
            elif self.ridge is not None:
                self._solve_readout(data.train_share)
            losses = self.loss.fitted_rows(self._forward(batch.tokens).outputs, batch.labels)
        return losses.sum() / batch.total

    def on_fit_start(self) -> None:
        self._check_trainer()
        with self.trainer.precision_plugin.train_step_context():
            reason = self.network.why_plain()
        if reason is None and self._callable[0] is not self.network:
            reason = "trainer.compile"
        if self.trainer.is_global_zero:
            kernel = "rows in blocks that stay in cache" if reason is None else f"the plain formula ({reason})"
            print(f"forward and backward: {kernel}")
            if self._has_eval_point:
                print("rows: by a forward pass of their own, at the optimizer's eval point")

    def on_train_start(self) -> None:
        # Lightning has just installed its own handlers, which would end the run after this step without a checkpoint.
        for signum, handler in self.signal_handlers.items():
            signal.signal(signum, handler)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Make the backward pass and publish the row of this step, before a callback may change the gradients."""
        super().backward(loss, *args, **kwargs)
        agreed_signal = self._add_ranks() if world_size() > 1 else None
        if self._has_eval_point:
            self._to_eval_point()
            if self._is_due():
                self._state = self._measure_by_own_pass(self.global_step, self.data)
            elif self.ridge is not None:
                with self.trainer.precision_plugin.train_step_context():
                    self._solve_readout(self.data.train_share)
        if self._state is not None:
            state, self._state = self._state, None
            state.readout_gradient = self._readout_gradient
            self._publish(state)
        self.trainer.should_stop |= self._stops_next
        # A single process also obeys a signal that came while the row was measured. Several ranks stop only at a signal
        # that all of them know of.
        signum = agreed_signal if world_size() > 1 else self.stop_signal
        if signum is not None:
            self.hand_over()
            call_hook(self.trainer, "on_interrupt", self)
            raise Interrupted(signum, f"Stopped by {signal.Signals(signum).name}.")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Lightning calls this after the hooks of the callbacks, which therefore see the eval point.
        self._to_train_point()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        # torch's zero_grad guards itself against the compiler, and the guard takes longer than a small backward pass.
        for parameter in self.network.parameters():
            parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().optimizer_step(*args, **kwargs)
        except RuntimeError as error:
            if not is_step_overflow(error):
                raise
            raise DivergenceError(f"Training diverged: the update after row {self.last_row} overflows.") from error
        self.network.normalize()

    def _check_trainer(self) -> None:
        """Refuse settings of a user's own Trainer that would make the rows wrong (`build_trainer` makes none)."""
        trainer = self.trainer
        if not isinstance(getattr(trainer, "datamodule", None), TableDataModule):
            raise InputError("Li2Module trains on a TableDataModule only; call trainer.fit(module, data) with one.")
        accumulates = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.accumulate_grad_batches != 1 or accumulates:
            raise InputError(
                "Li2Module makes one update a batch, since every row describes one update; leave out "
                "accumulate_grad_batches and GradientAccumulationScheduler and choose data.batch_size."
            )
        if trainer.max_steps < 0 and not isinstance(trainer.limit_train_batches, int):
            raise InputError(
                "An epoch of Li2Module never ends by itself; give the Trainer max_steps, or limit_train_batches with "
                "max_epochs."
            )
        if trainer.world_size != world_size() or not isinstance(
            trainer.strategy, SingleDeviceStrategy | SummingStrategy
        ):
            raise InputError(
                f"{type(trainer.strategy).__name__} does not sum the gradients of uneven shares; train with train.run "
                "and trainer.devices, or on one device with strategy='auto'."
            )
        if trainer.precision not in PRECISIONS:
            raise InputError(f"precision={trainer.precision!r} is unknown to Li2Module; use {', '.join(PRECISIONS)}.")

    @property
    def is_last_update(self) -> bool:
        """Before an update: whether it is the last, because of ``max_steps`` or a request to stop.

        A decision that follows the update (a time limit) is not known here.
        """
        return self.trainer.should_stop or self.global_step + 1 == self.trainer.max_steps

    def on_train_epoch_end(self) -> None:
        # The one epoch of a run ends with its last update. A trainer with several epochs goes on after most of them.
        if self.trainer.fit_loop.done:
            self._end()

    def on_fit_end(self) -> None:
        # For a run that was stopped between epochs or before its first update.
        self._end()

    @torch.no_grad()
    def _end(self) -> None:
        """Publish the last row, which describes the present weights; once, whatever ended the run."""
        if self._ended:
            return
        self._ended, self._stopped = True, self.trainer.should_stop
        self._to_eval_point()
        if self.global_step > self.last_row:
            state = self._measure_by_own_pass(self.global_step, self.data)
            state.is_last = True
            self._publish(state)
        self.hand_over()
        call_hook(self.trainer, "on_last_row", self)

    @torch.no_grad()
    def _to_eval_point(self) -> None:
        """Move the weights to the eval point; before the first update both points are the same."""
        if self._has_eval_point and not self._train_point and self.global_step > 0:
            self._train_point = {name: p.detach().clone() for name, p in self.network.named_parameters()}
            self.optimizer.eval()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _to_train_point(self) -> None:
        """Move the weights back to the train point, to the same bits."""
        if self._has_eval_point:
            self.optimizer.train()  # type: ignore[attr-defined]
            for name, weight in self._train_point.items():
                self.network.get_parameter(name).copy_(weight)
            self._train_point = {}

    def _add_ranks(self) -> int | None:
        """Sum the gradients of all ranks, in place; return the signal at which all ranks stop now, or None."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        caught = torch.zeros(signal.NSIG)
        if self.stop_signal is not None:
            caught[self.stop_signal] = 1
        *sums, signals = sum_over_ranks(*gradients, caught.to(self.device))
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total)
        # Reading the sum makes the host wait for the device, so on an accelerator it is read less often.
        if self.device.type != "cpu" and self.global_step % ROWS_PER_TRANSFER:
            return None
        return int(signals.argmax()) or None

    # -- rows -------------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether this step has a row that has not been measured."""
        return self.global_step > self.last_row and is_marked(self.evaluate_every_n_steps, self.global_step)

    @property
    def data(self) -> TableDataModule:
        """The training and test rows of this run."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TableDataModule)
        return data

    @property
    def _readout_gradient(self) -> Tensor | None:
        """∂L/∂V over all training rows at the weights of the row, if ``V.grad`` is that; else None.

        Mixed precision rounds it to half precision and may scale the loss. A hook on V may change it in any way.
        """
        V = self.network.V
        is_there = self.data.is_full_batch and not self._has_eval_point
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision)
        return V.grad if is_there and not mixed and not has_gradient_hooks(V) else None

    def hand_over(self) -> None:
        """Move the waiting rows to the host in one transfer and give them to callbacks and loggers in order.

        Raises:
            DivergenceError: a training loss that is not finite.
        """
        waiting, self._waiting = self._waiting, []
        for row in rows_to_host(waiting):
            call_hook(self.trainer, "on_row", self, row)
            step = int(row["step"] or 0)
            for logger in self.trainer.loggers:
                logger.log_metrics({k: v for k, v in row.items() if v is not None}, step)
            loss = row["train/loss"]
            if loss is None or not math.isfinite(loss):
                raise DivergenceError(f"Training diverged: train/loss is {loss} in row {step}{self._where(step)}.")
            self._finite_row = step
            if self.stop_at_test_accuracy is not None and (row["test/accuracy"] or 0) >= self.stop_at_test_accuracy:
                self.trainer.should_stop = True

    def _where(self, step: int) -> str:
        """For the message: the last finite row, and which weights are not finite."""
        since = f"; row {self._finite_row} was finite" if self._finite_row is not None else ""
        # On an accelerator later updates may have changed the weights before a row is read.
        if self.last_row != step:
            return since
        broken = [name for name, p in self.network.named_parameters() if not p.isfinite().all()]
        return f"{since}; {'not finite are ' + ', '.join(broken) if broken else 'the weights are finite'}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["li2_lightning"] = {
            "row": self.last_row,
            "config": self.config,
            "inputs": self.inputs,
            "is_last": self._ended,
            "updates_left": int(not self._stopped) if self.trainer.should_stop else None,
        }
        if self._train_point:
            checkpoint["li2_lightning"]["train_point"] = dict(self._train_point)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["li2_lightning"]
        self.last_row, self._stops_next = saved["row"], updates_left(saved, self.config) == 1
        self._train_point = saved.get("train_point", {})

    def _publish(self, state: StepState) -> None:
        """Let the callbacks add their columns, and queue the row."""
        call_hook(self.trainer, "on_step_state", self, state)
        self._waiting.append({"step": float(state.step), **state.columns})
        self.last_row = state.step
        at_once = self.device.type == "cpu" or self.stop_at_test_accuracy is not None
        if at_once or len(self._waiting) >= ROWS_PER_TRANSFER:
            self.hand_over()

    def _sums(self) -> FeatureSums | None:
        """An accumulator for the features of a forward pass; None where the network is compiled and cannot call it."""
        if self._callable[0] is not self.network:
            return None
        return FeatureSums(self.data.train_share.labels, self.network.V.shape[1])

    @torch.no_grad()
    def _measure_by_own_pass(self, step: int, data: TableDataModule) -> StepState:
        """Measure row ``step`` by a forward pass of its own, in the precision of a training step."""
        with self.trainer.precision_plugin.train_step_context():
            sums = self._sums()
            activity = self._forward_training_rows(data.train_share, sums)
            losses = self.loss.fitted_rows(activity.outputs, data.train_share.labels)
            return self._measure(step, data, activity, losses, sums)

    @torch.no_grad()
    def _measure(
        self, step: int, data: TableDataModule, activity: Activity, losses: Tensor, sums: FeatureSums | None
    ) -> StepState:
        """Measure losses and accuracies of both splits; ``activity`` and ``losses`` are those of the training rows."""
        state = StepState(step, activity, data.train, self.network, self.loss, sums)
        train, test = data.train_share, data.test_share
        outputs, test_outputs = activity.outputs.detach(), self.network.evaluate(test.tokens, activity.moments)
        offset = self.loss.offset(outputs, train.labels)
        if offset is not None:
            outputs, test_outputs = outputs + offset, test_outputs + offset
        self.train_statistics.update(losses, outputs, train.labels)
        self.test_statistics.update(self.loss.rows(test_outputs, test.labels), test_outputs, test.labels)
        add_ranks(self.train_statistics, self.test_statistics)
        for split, statistics in (("train", self.train_statistics), ("test", self.test_statistics)):
            for name, value in statistics.compute().items():
                state.log(f"{split}/{name}", value)
            statistics.reset()
        return state

    def _forward(self, tokens: Tensor, sums: FeatureSums | None = None) -> Activity:
        return self._callable[0](tokens) if sums is None else self.network(tokens, observe=sums)

    def _forward_training_rows(self, rows: Rows, sums: FeatureSums | None = None) -> Activity:
        """A forward pass over all training rows; a ridge readout V is solved first."""
        if self.ridge is not None:
            self._solve_readout(rows)
        return self._forward(rows.tokens, sums)

    @torch.no_grad()
    def _solve_readout(self, rows: Rows) -> None:
        """Set V to the ridge readout of these rows at the present hidden weights."""
        assert self.ridge is not None
        F = self.network_config.output_scale * self.network.compute_features(rows.tokens).last
        # The outputs are Re(FV) = Re F·Re V − Im F·Im V, a real problem of twice the width.
        real = torch.cat([F.real, -F.imag], dim=1) if F.is_complex() else F
        Y = one_hot(rows.labels, self.network.V.shape[1], real.dtype)
        V = _ridge_readout(*self.loss.ridge_problem(real, Y), self.ridge, rows.total)
        self.network.V.copy_(torch.complex(*torch.split(V, F.shape[1])) if F.is_complex() else V)


def _ridge_readout(features: Tensor, targets: Tensor, ridge: float, total: int) -> Tensor:
    """`ridge_readout` on the rows of all ranks, ``total`` rows; it also solves the smaller of the two systems."""
    if world_size() == 1:
        return ridge_readout(features, targets, ridge)
    if total < features.shape[1]:
        return ridge_readout(gather_rows(features), gather_rows(targets), ridge)
    F, Y = features.double(), targets.double()
    gram, right = sum_over_ranks(F.mT @ F, F.mT @ Y)
    return solve_shifted(gram, right, ridge).to(features.dtype)
