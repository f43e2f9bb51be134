"""The LightningModule: one forward pass a step serves training, evaluation and every diagnostic.

Row t describes the weights after t updates. It is taken inside step t, after the backward pass and before the
optimizer moves the weights: the forward pass that trains is the one that is measured. The last row costs one forward
pass more. Values stay on the device until the rows are handed over, several at a time.

An optimizer with ``train()`` and ``eval()`` has two points. Gradients are computed and updates made at the train point.
From the backward pass to the update the weights stand at the eval point: rows are measured there, by a forward pass of
their own, and checkpoints hold these weights.

Callbacks may define, besides Lightning's hooks:

* ``on_step_state(trainer, module, state)``: once for each row, to add columns to it (`StepState.log`);
* ``on_row(trainer, module, row)``: the finished row on the host, in order, an undefined value as None; what it adds to
  the dictionary goes into the row;
* ``on_stage_transition(trainer, module, transition)``: a `li2_lightning.theory.stages.Transition` was declared;
* ``on_last_row(trainer, module)``: every row has been handed over, that of ``state.is_last`` the last;
* ``on_interrupt(trainer, module)``: a signal stops the run at these weights.
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

# Rows that wait on an accelerator before they are moved to the host together.
ROWS_IN_FLIGHT = 16


def call_hook(trainer: lightning.Trainer, name: str, *args: Any) -> None:
    """Call one of our hooks on every callback that has it, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        hook: Callable[..., None] | None = getattr(callback, name, None)
        if hook is not None:
            hook(trainer, *args)


class Li2Module(lightning.LightningModule):
    """Trains a network on a `TableDataModule` and publishes a row at a time.

    Args:
        network: `li2_lightning.networks.base.Network`.
        loss: the training loss.
        optimizer: over the network's parameters.
        scheduler: stepped once an update, or None.
        ridge: η of the ridge readout; None where V is trained.
        evaluate_every_n_steps: rows are 0, every multiple of this, and the last.
        stop_at_test_accuracy: end with the update after the first row that reaches it; None: go on to the end.
        compile_network: run the network through ``torch.compile``.
        config: the plain config, kept in every checkpoint.
        inputs: of `li2_lightning.config.schema.input_digests`, kept there, too.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        ridge: float | None = None,
        evaluate_every_n_steps: int = 1,
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
        # Whether the last row is out, and whether something had stopped the run before it.
        self._ended = self._stopped = False
        # Whether the checkpoint that the run continues from was made one update before a stop.
        self._stops_next = False
        # Set by whoever catches signals; the run stops where its state is whole.
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
        # At the eval point: the weights of the train point, since the optimizer's own way back rounds.
        self._train_point: dict[str, Tensor] = {}
        # In a tuple, since an attribute that is a module would put its weights into every checkpoint a second time.
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
                self._state.expect_second_pass()
        else:
            if due:
                self._state = self._measure_anew(step, data)
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
        # Lightning has just put its own in front of ours, which ends the run after this step, with nothing saved.
        for signum, handler in self.signal_handlers.items():
            signal.signal(signum, handler)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass, and the row of this step, before any callback may change the gradients."""
        super().backward(loss, *args, **kwargs)
        asked = self._add_ranks() if world_size() > 1 else None
        if self._has_eval_point:
            self._to_eval_point()
            if self._is_due():
                self._state = self._measure_anew(self.global_step, self.data)
            elif self.ridge is not None:
                with self.trainer.precision_plugin.train_step_context():
                    self._solve_readout(self.data.train_share)
        if self._state is not None:
            state, self._state = self._state, None
            state.readout_gradient = self._readout_gradient
            self._publish(state)
        self.trainer.should_stop |= self._stops_next
        # Alone, a signal counts that came while the row was measured; several ranks stop when all know of it.
        signum = asked if world_size() > 1 else self.stop_signal
        if signum is not None:
            self.hand_over()
            call_hook(self.trainer, "on_interrupt", self)
            raise Interrupted(signum, f"Stopped by {signal.Signals(signum).name}.")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # After the callbacks' hooks of this name.
        self._to_train_point()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        # What torch's own does, without its guard against the compiler, which costs more than a small step's backward.
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
        """Refuse what a Trainer that is not `runtime.build_trainer`'s may ask for and would make the rows wrong."""
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
        """Before an update: whether the run is known to end with it, at ``max_steps`` or since it was asked to stop.

        What is decided after the update (a time limit) is not known here.
        """
        return self.trainer.should_stop or self.global_step + 1 == self.trainer.max_steps

    def on_train_epoch_end(self) -> None:
        # The one epoch of a run ends with its last update. A trainer with several epochs goes on after most of them.
        if self.trainer.fit_loop.done:
            self._end()

    def on_fit_end(self) -> None:
        # Where no epoch's end was the end of the run: it was stopped after that, or before its first update.
        self._end()

    @torch.no_grad()
    def _end(self) -> None:
        """Publish the last row, that of the present weights; once, whatever ended the run."""
        if self._ended:
            return
        self._ended, self._stopped = True, self.trainer.should_stop
        self._to_eval_point()
        if self.global_step > self.last_row:
            state = self._measure_anew(self.global_step, self.data)
            state.is_last = True
            self._publish(state)
        self.hand_over()
        call_hook(self.trainer, "on_last_row", self)

    @torch.no_grad()
    def _to_eval_point(self) -> None:
        """Move the weights to where the optimizer has them evaluated; before the first update they are there."""
        if self._has_eval_point and not self._train_point and self.global_step > 0:
            self._train_point = {name: p.detach().clone() for name, p in self.network.named_parameters()}
            self.optimizer.eval()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _to_train_point(self) -> None:
        """Move the weights back to where they are trained, to the same bits."""
        if self._has_eval_point:
            self.optimizer.train()  # type: ignore[attr-defined]
            for name, weight in self._train_point.items():
                self.network.get_parameter(name).copy_(weight)
            self._train_point = {}

    def _add_ranks(self) -> int | None:
        """Sum the gradients of every rank's rows, in place; the signal at which all ranks stop now, if any has one."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        asked = torch.zeros(signal.NSIG)
        if self.stop_signal is not None:
            asked[self.stop_signal] = 1
        *sums, signals = sum_over_ranks(*gradients, asked.to(self.device))
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total)
        # Reading it waits for the device, so an accelerator is asked less often.
        if self.device.type != "cpu" and self.global_step % ROWS_IN_FLIGHT:
            return None
        return int(signals.argmax()) or None

    # -- rows -------------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether the weights of this step are a row that has not been measured."""
        return self.global_step > self.last_row and self.global_step % self.evaluate_every_n_steps == 0

    @property
    def data(self) -> TableDataModule:
        """The rows that this run trains and is measured on."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TableDataModule)
        return data

    @property
    def _readout_gradient(self) -> Tensor | None:
        """∂L/∂V over all training rows at the weights of the row, if that is what the backward pass has left in V.

        Mixed precision rounds it to half precision, and may have scaled the loss; hooks on V may do anything.
        """
        V = self.network.V
        is_there = self.data.is_full_batch and not self._has_eval_point
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision)
        return V.grad if is_there and not mixed and not has_gradient_hooks(V) else None

    def hand_over(self) -> None:
        """Move the waiting rows to the host in one transfer; callbacks and loggers get them in order.

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
        """Where the first value that is not finite came from, for the message."""
        since = f"; row {self._finite_row} was finite" if self._finite_row is not None else ""
        # On an accelerator a row is read when the weights may have moved on.
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
        held = checkpoint["li2_lightning"]
        self.last_row, self._stops_next = held["row"], updates_left(held, self.config) == 1
        self._train_point = held.get("train_point", {})

    def _publish(self, state: StepState) -> None:
        """Let the callbacks measure, and queue the row."""
        call_hook(self.trainer, "on_step_state", self, state)
        self._waiting.append({"step": float(state.step), **state.columns})
        self.last_row = state.step
        at_once = self.device.type == "cpu" or self.stop_at_test_accuracy is not None
        if at_once or len(self._waiting) >= ROWS_IN_FLIGHT:
            self.hand_over()

    def _sums(self) -> FeatureSums | None:
        """What adds up the features of a forward pass; None where the network is compiled, and no Python looks on."""
        if self._callable[0] is not self.network:
            return None
        return FeatureSums(self.data.train_share.labels, self.network.V.shape[1])

    @torch.no_grad()
    def _measure_anew(self, step: int, data: TableDataModule) -> StepState:
        """A row with a forward pass of its own, in the precision of a training step."""
        with self.trainer.precision_plugin.train_step_context():
            sums = self._sums()
            activity = self._forward_training_rows(data.train_share, sums)
            losses = self.loss.fitted_rows(activity.outputs, data.train_share.labels)
            return self._measure(step, data, activity, losses, sums)

    @torch.no_grad()
    def _measure(
        self, step: int, data: TableDataModule, activity: Activity, losses: Tensor, sums: FeatureSums | None
    ) -> StepState:
        """Losses and accuracies of both splits at the weights of ``activity``, which has these training losses."""
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
        """A forward pass over all training rows; solves V first where the readout is ridge."""
        if self.ridge is not None:
            self._solve_readout(rows)
        return self._forward(rows.tokens, sums)

    @torch.no_grad()
    def _solve_readout(self, rows: Rows) -> None:
        """Set V to the ridge readout of these rows at the present hidden weights."""
        assert self.ridge is not None
        F = self.network_config.output_scale * self.network.compute_features(rows.tokens).last
        # The loss sees Re(FV) = Re F·Re V − Im F·Im V, a real problem of twice the width.
        real = torch.cat([F.real, -F.imag], dim=1) if F.is_complex() else F
        Y = one_hot(rows.labels, self.network.V.shape[1], real.dtype)
        V = _ridge_readout(*self.loss.ridge_problem(real, Y), self.ridge, rows.total)
        self.network.V.copy_(torch.complex(*torch.split(V, F.shape[1])) if F.is_complex() else V)


def _ridge_readout(features: Tensor, targets: Tensor, ridge: float, total: int) -> Tensor:
    """`ridge_readout` of the rows of every rank, ``total`` of them, on the smaller side as there."""
    if world_size() == 1:
        return ridge_readout(features, targets, ridge)
    if total < features.shape[1]:
        return ridge_readout(gather_rows(features), gather_rows(targets), ridge)
    F, Y = features.double(), targets.double()
    gram, right = sum_over_ranks(F.mT @ F, F.mT @ Y)
    return solve_shifted(gram, right, ridge).to(features.dtype)
