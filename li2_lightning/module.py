"""The LightningModule: training, evaluation and all diagnostics share one forward pass a step.

Row t describes the weights after t updates. It is measured inside step t, after the backward pass and before the
update, from the forward pass of the training step. The last row has no training step, so it takes a forward pass of its
own. On an accelerator the values of several rows are moved to the host together.

An optimizer with ``train()`` and ``eval()`` has two sets of weights. At the train point gradients are computed and
updates are made. From the backward pass to the update the weights are at the eval point: rows are measured there, by a
forward pass of their own, and checkpoints hold these weights.

Besides Lightning's hooks, a callback may have those of `li2_lightning.measurement.rows`.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from li2_lightning._compat import has_gradient_hooks, is_step_overflow
from li2_lightning.cadence import is_marked
from li2_lightning.config.checks import read_config
from li2_lightning.config.identity import input_digests, ridge_strength
from li2_lightning.config.schema import Config, to_plain
from li2_lightning.data import Rows, TableDataModule
from li2_lightning.distributed.collectives import sum_over_ranks, world_size
from li2_lightning.errors import DivergenceError, InputError, Interrupted
from li2_lightning.log import tell
from li2_lightning.losses import Loss, build_loss
from li2_lightning.measurement.evaluation import EvaluatedModule
from li2_lightning.measurement.requirements import check_trainer, make_folder
from li2_lightning.measurement.rows import MONITORED, Position, Row, call_hook, offer, rows_to_host
from li2_lightning.measurement.step_state import StepState
from li2_lightning.networks.base import Network
from li2_lightning.networks.build import build_optimizer, restore_network
from li2_lightning.runs.checkpoints import network_weights, read_checkpoint, read_weights, updates_left
from li2_lightning.seeds import random_state

# Rows that collect on an accelerator before one transfer moves them to the host.
ROWS_PER_TRANSFER = 16


class Li2Module(EvaluatedModule):
    """Trains a network on a `TableDataModule` and publishes one row after the other.

    `from_config` and `load_from_checkpoint` make one; any Trainer of Lightning takes it:
    ``lightning.Trainer(max_steps=400).fit(module, module.data)``. A further fit goes on from the weights and the state
    of the optimizer that the fit before has left.

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
        data: the rows that `data` gives where the Trainer has none.
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
        data: TableDataModule | None = None,
    ) -> None:
        # In a partial: a module as an attribute would put its weights into every checkpoint a second time.
        call = partial(torch.compile(network)) if compile_network else None
        super().__init__(network, loss, optimizer, ridge, call, data)
        self.scheduler = scheduler
        self.evaluate_every_n_steps = evaluate_every_n_steps
        self.stop_at_test_accuracy = stop_at_test_accuracy
        self.config, self.inputs = dict(config or {}), dict(inputs or {})
        self.save_hyperparameters(self.config)
        self.position = Position()
        # Whether the last row is published, and whether the run was asked to stop before that row.
        self._ended = self._announced = self._stopped = False
        # Whether the run continues from a checkpoint that was made one update before a stop.
        self._stops_next = False
        # The handler of a signal sets this number; the run stops after a backward pass, when its state is consistent.
        self.stop_signal: int | None = None
        self.signal_handlers: dict[int, Any] = {}
        self._state: StepState | None = None

    @classmethod
    def from_config(
        cls,
        config: Config | Mapping[str, Any] | None = None,
        data: TableDataModule | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Li2Module:
        """The module of a run with its initial weights and its optimizer.

        Args:
            config: the keys that differ from their defaults, as for ``train.run``; or what `read_config` made of them.
            data: rows of your own, of any task; None takes those of the config.
            weights: the parameters of the network by name (W, V, …); None takes the initial weights of the config.

        Raises:
            InputError: a key, a value or a plug-in does not fit, or a file is missing.
        """
        config = config if isinstance(config, Config) else read_config(config or {})
        data = data or TableDataModule.from_config(config)
        initial = read_weights(config.network.initial_weights, "network.initial_weights") if weights is None else None
        network = restore_network(config, data.task, weights or initial, None if initial else "weights")
        optimizer, scheduler = build_optimizer(config, network)
        return cls(
            network,
            build_loss(config.loss),
            optimizer,
            scheduler,
            ridge=ridge_strength(config, len(data.train)),
            evaluate_every_n_steps=config.data.evaluate_every_n_steps or data.steps_per_pass,
            stop_at_test_accuracy=config.stop_at_test_accuracy,
            compile_network=config.trainer.compile,
            config=to_plain(config),
            inputs=input_digests(config),
            data=data,
        )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: str | torch.device | None = None,
        weights_only: bool | None = None,
        *,
        data: TableDataModule | None = None,
    ) -> Li2Module:
        """The module with the weights of a checkpoint: of a run, or of Lightning's ModelCheckpoint.

        The config in the checkpoint describes the module. ``trainer.fit(module, module.data, ckpt_path=...)`` restores
        the optimizer, too.

        Args:
            checkpoint_path: the file; no code in it is run.
            map_location: the device of the weights; None is the CPU.
            weights_only: Lightning's argument; a checkpoint of this project is plain data in any case.
            data: the rows, for a module that was made with rows of your own.

        Raises:
            InputError: the file cannot be read, a plug-in that its config names is unknown, or the rows of the
                checkpoint are others.
        """
        where = str(checkpoint_path)
        checkpoint = read_checkpoint(Path(checkpoint_path), where)
        ours = checkpoint["li2_lightning"]
        if not ours["config"]:
            raise InputError(f"{where} has no config, since its module was not made by Li2Module.from_config.")
        config = read_config(ours["config"])
        rows = data or TableDataModule.from_config(config)
        if ours.get("training_rows", rows.fingerprint) != rows.fingerprint:
            raise InputError(
                f"{where} was trained on other rows than {'those given' if data else 'its config describes'}; give "
                "load_from_checkpoint the rows of its module as data=."
            )
        module = cls.from_config(config, rows, network_weights(checkpoint))
        return module if map_location is None else module.to(map_location)

    @property
    def last_row(self) -> int:
        """The newest row that was measured; −1 before the first."""
        return self.position.row

    # -- training ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer | OptimizerLRSchedulerConfig:
        if self.scheduler is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        self.position.random_state = random_state()
        due = self.is_due() and not self.has_eval_point
        self.to_train_point()
        row = self.global_step if due else None
        losses, self._state = self.passes.train(batch, self.data.is_full_batch, row)
        return losses.sum() / batch.total

    def on_fit_start(self) -> None:
        check_trainer(self.trainer)
        make_folder(self.trainer)
        with self.trainer.precision_plugin.train_step_context():
            reason = self.network.why_plain()
        if reason is None and self._call is not None:
            reason = "trainer.compile"
        kernel = "rows in blocks that stay in cache" if reason is None else f"the plain formula ({reason})"
        tell(f"forward and backward: {kernel}")
        if self.has_eval_point:
            tell("rows: by a forward pass of their own, at the optimizer's eval point")

    def on_train_start(self) -> None:
        # A fit has a last row of its own; and a further Trainer counts its steps, and so the rows, from 0.
        self._ended = self._announced = self._stopped = False
        if self.last_row > self.global_step:
            self.position.row, self.position.finite_row = -1, None
        # Lightning has just installed its own handlers, which would end the run after this step without a checkpoint.
        for signum, handler in self.signal_handlers.items():
            signal.signal(signum, handler)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Make the backward pass and publish the row of this step, before a callback may change the gradients."""
        super().backward(loss, *args, **kwargs)
        agreed_signal = self._add_ranks() if world_size() > 1 else None
        if self.has_eval_point:
            self.to_eval_point()
            self._state = self.passes.row(self.global_step if self.is_due() else None)
        if self._state is not None:
            state, self._state = self._state, None
            state.readout_gradient = self.readout_gradient(self.network)
            self.publish(state)
        # A single process also obeys a signal that came while the row was measured. Several ranks stop only at a signal
        # that all of them know of.
        self.obey(agreed_signal if world_size() > 1 else self.stop_signal)

    def obey(self, signum: int | None) -> None:
        """Stop where the run is asked to: after the next update, or at once by a signal.

        Raises:
            Interrupted: ``signum`` is a signal.
        """
        if self._stops_next:
            self.trainer.should_stop = True
        if signum is not None:
            self.hand_over()
            call_hook(self.trainer, "on_interrupt", self)
            raise Interrupted.by(signum)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Lightning calls this after the hooks of the callbacks, which therefore see the eval point.
        self.to_train_point()

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
            raise self.overflow() from error
        self.network.normalize()

    def overflow(self) -> DivergenceError:
        """The error of an update that `is_step_overflow` recognizes."""
        return DivergenceError(f"Training diverged: the update after row {self.last_row} overflows.")

    @property
    def is_last_update(self) -> bool:
        """Before an update: whether it is the last, because of ``max_steps`` or a request to stop.

        A decision that follows the update (a time limit) is not known here.
        """
        trainer = self.trainer
        is_last_batch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        return trainer.should_stop or is_last_batch or self.global_step + 1 == trainer.max_steps

    def on_train_epoch_end(self) -> None:
        # A Trainer with several epochs goes on after most of them. (Lightning's fit_loop.done would print its answer.)
        trainer, epochs = self.trainer, self.trainer.current_epoch + 1
        may_stop = epochs >= (trainer.min_epochs or 0) and self.global_step >= (trainer.min_steps or 0)
        if epochs == trainer.max_epochs or self.global_step == trainer.max_steps or (trainer.should_stop and may_stop):
            self.end()
        else:
            self.hand_over()

    def on_train_end(self) -> None:
        # For a run that a callback stopped at the end of an epoch, as EarlyStopping does.
        self.end()

    def on_fit_end(self) -> None:
        if not self._announced:
            # For a run that was stopped before its first update. Lightning has moved the weights to the CPU.
            self.data.teardown("fit")
            self._passes = None
            self.end()

    def end(self) -> None:
        """Publish the last row, which describes the present weights; once, whatever ended the run."""
        if self.before_last_row():
            self.publish_last(self.passes.measure(self.global_step))
        self.after_last_row()

    def before_last_row(self) -> bool:
        """Move to the weights that the last row describes; whether this row has to be measured."""
        if self._ended:
            return False
        self._stopped = self.trainer.should_stop
        self.to_eval_point()
        return self.global_step > self.last_row

    @torch.no_grad()
    def publish_last(self, state: StepState) -> None:
        """Publish the last row."""
        state.is_last = True
        self._ended = True
        self.publish(state)

    @torch.no_grad()
    def after_last_row(self) -> None:
        """Give out the rows that wait, and announce the last of them to the callbacks, once."""
        if not self._announced:
            self._ended, self._announced, self._stops_next = True, True, False
            self.hand_over()
            call_hook(self.trainer, "on_last_row", self)

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

    def is_due(self) -> bool:
        """Whether this step has a row that has not been measured."""
        return self.global_step > self.last_row and is_marked(self.evaluate_every_n_steps, self.global_step)

    def readout_gradient(self, network: Network) -> Tensor | None:
        """∂L/∂V over all training rows at the weights of the row, if the gradient of V is that; else None.

        Mixed precision rounds it to half precision and may scale the loss. A hook on V may change it in any way.

        Args:
            network: this run's, or that of its whole stack.
        """
        is_there = self.data.is_full_batch and not self.has_eval_point
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision)
        return network.V.grad if is_there and not mixed and not has_gradient_hooks(self.network.V) else None

    def hand_over(self) -> None:
        """Move the waiting rows to the host in one transfer and give them to callbacks and loggers in order.

        Raises:
            DivergenceError: a training loss that is not finite.
        """
        self.receive(rows_to_host(self.take_waiting()))

    def take_waiting(self) -> list[dict[str, Tensor | float]]:
        """The rows that are not on the host yet; from now on the caller has them."""
        waiting, self.position.waiting = self.position.waiting, []
        return waiting

    def receive(self, rows: list[Row]) -> None:
        """Give rows on the host to callbacks and loggers; errors as for `hand_over`."""
        for row in rows:
            call_hook(self.trainer, "on_row", self, row)
            offer(self.trainer, row)
            step = int(row["step"] or 0)
            for logger in self.trainer.loggers:
                logger.log_metrics({k: v for k, v in row.items() if v is not None}, step)
            loss = row["train/loss"]
            if loss is None or not math.isfinite(loss):
                raise DivergenceError(f"Training diverged: train/loss is {loss} in row {step}{self._where(step)}.")
            self.position.finite_row = step
            if self.stop_at_test_accuracy is not None and (row["test/accuracy"] or 0) >= self.stop_at_test_accuracy:
                self.trainer.should_stop = True

    def _where(self, step: int) -> str:
        """For the message: the last finite row, and which weights are not finite."""
        since = f"; row {self.position.finite_row} was finite" if self.position.finite_row is not None else ""
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
            "training_rows": self.data.fingerprint,
        }
        if self._train_point:
            checkpoint["li2_lightning"]["train_point"] = dict(self._train_point)
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["li2_lightning"]
        self.position.row, self._stops_next = saved["row"], updates_left(saved, self.config) == 1
        self._train_point = saved.get("train_point", {})

    def publish(self, state: StepState) -> None:
        """Let the callbacks add their columns, queue the row, and give it out where it cannot wait."""
        call_hook(self.trainer, "on_step_state", self, state)
        self.queue(state)
        if self.rows_are_due:
            self.hand_over()

    def queue(self, state: StepState) -> None:
        """Queue a finished row."""
        self.position.waiting.append({"step": float(state.step), **state.columns})
        self.position.row = state.step
        if self.device.type != "cpu":
            # The row waits, but Lightning's callbacks may look at it before it is on the host.
            columns = {name: value for name in MONITORED if isinstance(value := state.columns.get(name), Tensor)}
            self.trainer.callback_metrics.update(columns)

    @property
    def rows_are_due(self) -> bool:
        """Whether the waiting rows have to be given out now; rows of an accelerator collect for one transfer."""
        position = self.position
        at_once = self.device.type == "cpu" or self.stop_at_test_accuracy is not None or position.is_needed
        return at_once or len(position.waiting) >= ROWS_PER_TRANSFER
