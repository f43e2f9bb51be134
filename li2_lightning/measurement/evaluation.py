"""Outputs of a network for any rows, and Lightning's validation, test and prediction; no training.

Losses and accuracies are those of a row of metrics.csv at the same weights: the network is evaluated with the training
rows beside it, because batch norm takes its statistics from them, a loss may fit an offset per class to them, and a
ridge readout is solved on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from li2_lightning.data import Rows, TableDataModule
from li2_lightning.errors import InputError
from li2_lightning.losses import Loss
from li2_lightning.measurement.passes import Passes, Reference
from li2_lightning.measurement.split_statistics import RowStatistics, add_ranks
from li2_lightning.networks.base import Activity, Network


class EvaluatedModule(lightning.LightningModule):
    """The part of `li2_lightning.module.Li2Module` that needs no training.

    ``trainer.validate(module, data)`` and ``trainer.test(module, data)`` log ``train/loss``, ``train/accuracy``,
    ``test/loss`` and ``test/accuracy``; the last two describe the rows of the validation or test loader.

    Args:
        network, loss: the network, and the training loss.
        optimizer: over the network's parameters; one with ``train()`` and ``eval()`` has two sets of weights.
        ridge: η of the ridge readout; None where V is trained.
        call: computes `Network.forward`; None is the network itself.
        rows: the rows that the module was built for.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        optimizer: Optimizer,
        ridge: float | None,
        call: Callable[..., Activity] | None,
        rows: TableDataModule | None,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.optimizer, self.ridge = network, loss, optimizer, ridge
        self.has_eval_point = all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))
        if self.has_eval_point and network.config.normalize_weights:
            raise InputError(
                "network.normalize_weights=true acts on the weights that are trained; this optimizer is evaluated at "
                "other weights, which are not normalized; choose another optimizer or leave this key false."
            )
        # While the weights are at the eval point: a copy of the train point, since optimizer.train() rounds.
        self._train_point: dict[str, Tensor] = {}
        self._moved = False
        self._call, self._rows = call, rows
        self._passes: Passes | None = None
        # During a validation or a test: what the training rows give, and the sums over them and over the loader's rows.
        self._evaluation: tuple[Reference, RowStatistics, RowStatistics] | None = None

    # -- the rows and the weights -------------------------------------------------------------------------------------

    @property
    def data(self) -> TableDataModule:
        """The rows: those of the Trainer, else those that the module was built for.

        Raises:
            InputError: there are none.
        """
        try:
            data = getattr(self.trainer, "datamodule", None)
        except RuntimeError:  # there is no Trainer yet
            data = None
        data = data if isinstance(data, TableDataModule) else self._rows
        if data is None:
            raise InputError(
                "Outputs of any rows need the training rows, and this Li2Module has no rows; make it with "
                "Li2Module.from_config, or give it a TableDataModule."
            )
        return data

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, TableDataModule):
            self._check_sizes(data)
        elif stage != "predict":
            raise InputError(
                "Every row of Li2Module describes the whole training and test set, so it takes a TableDataModule and "
                f"no other loader; call trainer.{TrainerFn(stage).value}(module, module.data), or give it "
                "TableDataModule(task, split) with rows of your own."
            )
        # The precision and the device are those of this Trainer.
        self._passes = None

    def _check_sizes(self, data: TableDataModule) -> None:
        network, task = self.network, data.task
        have = (network.num_tokens, network.num_operands, network.V.shape[-1])
        need = (task.num_tokens, task.num_operands, task.num_classes)
        if have != need:
            raise InputError(
                "The network has {} tokens, {} operands and {} classes, and the task ".format(*have)
                + "{} has {}, {} and {}; make the module with Li2Module.from_config(config, data).".format(
                    task.name, *need
                )
            )

    @property
    def passes(self) -> Passes:
        """The forward passes of this run; the rows are on the device from `setup` on."""
        if self._passes is None:
            precision = self.trainer.precision_plugin.train_step_context
            self._passes = Passes(self.network, self.loss, self.data, precision, self.ridge, self._call)
        return self._passes

    @torch.no_grad()
    def to_eval_point(self) -> None:
        """Move the weights to the eval point; before the first update both points are the same."""
        if self.has_eval_point and not self._train_point and self.global_step > 0:
            self._train_point = {name: p.detach().clone() for name, p in self.network.named_parameters()}
            self.optimizer.eval()  # type: ignore[attr-defined]

    @torch.no_grad()
    def to_train_point(self) -> None:
        """Move the weights back to the train point, to the same bits."""
        if self.has_eval_point:
            self.optimizer.train()  # type: ignore[attr-defined]
            for name, weight in self._train_point.items():
                self.network.get_parameter(name).copy_(weight)
            self._train_point = {}

    # -- outputs ------------------------------------------------------------------------------------------------------

    def forward(self, tokens: Tensor) -> Tensor:
        """The outputs Ŷ of any rows at the present weights, n × C; the prediction is ``argmax(-1)``.

        They are the outputs from which a row of metrics.csv has its accuracies, in ``train()`` and ``eval()`` mode
        alike. With batch norm, a ridge readout, or a loss that fits an offset per class, they come with a pass over the
        training rows. They can be differentiated with respect to the weights.

        Args:
            tokens: operands, n × k, int64, on the device of the module.

        Raises:
            InputError: training rows are needed, and the module has none.
        """
        activity = self.network(tokens)
        if not activity.moments and self.ridge is None and type(self.loss).offset is Loss.offset:
            return activity.outputs  # type: ignore[no-any-return]
        # A tensor made in inference mode could not be differentiated through.
        with torch.inference_mode(False):
            reference = Passes(self.network, self.loss, self.data, nullcontext, self.ridge).reference()
        outputs = self.network(tokens, reference.moments).outputs
        return self.loss.fitted_outputs(outputs, reference.outputs, reference.labels)

    def predict_step(self, batch: Rows | Tensor | Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The outputs of a batch, n × C: of `Rows`, of tokens, or of a tuple that begins with tokens."""
        if isinstance(batch, Rows):
            return self(batch.tokens)  # type: ignore[no-any-return]
        return self(batch if isinstance(batch, Tensor) else batch[0])  # type: ignore[no-any-return]

    # -- validation and test ------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        # Within a fit the weights may be at the train point.
        self._moved = self.has_eval_point and not self._train_point
        self.to_eval_point()

    def on_validation_end(self) -> None:
        if self._moved and self._train_point:
            self.to_train_point()

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_validation_epoch_start(self) -> None:
        reference = self.passes.reference()
        train, test = (RowStatistics().to(self.device) for _ in range(2))
        outputs = self.loss.fitted_outputs(reference.outputs, reference.outputs, reference.labels)
        train.update(self.loss.rows(outputs, reference.labels), outputs, reference.labels)
        self._evaluation = reference, train, test

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        assert self._evaluation is not None
        reference, _, test = self._evaluation
        test.update(*self.passes.evaluate(batch, reference), batch.labels)

    def on_validation_epoch_end(self) -> None:
        assert self._evaluation is not None
        _, *statistics = self._evaluation
        self._evaluation = None
        add_ranks(*statistics)
        # Within a fit the loggers get the rows, and these values are for callbacks such as EarlyStopping.
        logger = False if self.trainer.state.fn == TrainerFn.FITTING else None
        for split, sums in zip(("train", "test"), statistics, strict=True):
            for name, value in sums.compute().items():
                self.log(f"{split}/{name}", value, logger=logger, batch_size=1)

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end

    def test_step(self, batch: Rows, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A checkpoint that a callback of Lightning writes after an update: rows describe the eval point, so the
        # checkpoint has it, too, and the train point beside it.
        if self.has_eval_point and not self._train_point and self.global_step > 0:
            self.to_eval_point()
            checkpoint["state_dict"] = {name: value.clone() for name, value in self.state_dict().items()}
            train_point = dict(self._train_point)
            self.to_train_point()
            checkpoint["li2_lightning"]["train_point"] = train_point
