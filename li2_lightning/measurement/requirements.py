"""The settings of Lightning's Trainer with which all rows are right, in `train.run` and in a user's own Trainer."""

from __future__ import annotations

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import SingleDeviceStrategy

from li2_lightning.config.schema import PRECISIONS
from li2_lightning.distributed.collectives import world_size
from li2_lightning.distributed.strategy import SummingStrategy
from li2_lightning.errors import InputError

# ``trainer.extra``: the arguments of Lightning's Trainer that a run may have beside those of `build_trainer`.
EXTRA = (
    "profiler", "gradient_clip_val", "gradient_clip_algorithm", "detect_anomaly", "fast_dev_run", "max_time",
    "deterministic", "benchmark", "enable_model_summary",
)  # fmt: skip
# Why every other argument is refused.
REFUSED = {
    "it is a key of its own, trainer.{name}": ("accelerator", "devices", "num_nodes", "precision"),
    "it is a key of its own, {name}": ("max_steps",),
    "ranks divide the rows and sum their gradients by this library's own strategy": (
        "strategy", "plugins", "use_distributed_sampler", "sync_batchnorm",
    ),
    "the sections logger and callbacks and the key output_dir say where a run is kept": (
        "logger", "callbacks", "default_root_dir", "enable_checkpointing", "model_registry", "enable_autolog_hparams",
    ),
    "callbacks.progress shows the progress": ("enable_progress_bar",),
    "a run is one endless epoch, whose length is max_steps and whose rows are those of the data section": (
        "max_epochs", "min_epochs", "min_steps", "limit_train_batches", "overfit_batches",
        "reload_dataloaders_every_n_epochs",
    ),
    "a run has no validation loop, because each row measures both splits": (
        "limit_val_batches", "limit_test_batches", "limit_predict_batches", "val_check_interval",
        "check_val_every_n_epoch", "num_sanity_val_steps", "inference_mode",
    ),
    "data.evaluate_every_n_steps says which rows there are": ("log_every_n_steps",),
    "every row describes one update; data.batch_size says how many rows an update takes": ("accumulate_grad_batches",),
    "it switches off the callbacks, which measure the rows": ("barebones",),
}  # fmt: skip
# The refused arguments that a Trainer of a user's own may not have either, with the value that leaves the rows right.
# The others are the user's choice there, such as logger and callbacks.
HARMLESS = {"accumulate_grad_batches": 1, "overfit_batches": 0, "barebones": False}


def why_refused(name: str) -> str | None:
    """The reason for which an argument of Lightning's Trainer is refused; None for any other word."""
    return next((reason.format(name=name) for reason, names in REFUSED.items() if name in names), None)


def check_trainer(trainer: lightning.Trainer) -> None:
    """Check that a Trainer of a user's own makes right rows.

    Raises:
        InputError: an argument would silently make rows wrong; or no argument ends the fit.
    """
    for name, harmless in HARMLESS.items():
        if (value := getattr(trainer, name)) != harmless:
            raise InputError(f"Trainer({name}={value!r}) is refused: {why_refused(name)}.")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            raise InputError(f"{type(callback).__name__} is refused: {why_refused('accumulate_grad_batches')}.")
    if trainer.max_steps < 0 and not isinstance(trainer.limit_train_batches, int):
        raise InputError(
            "An epoch of Li2Module never ends by itself; give the Trainer max_steps, or limit_train_batches with "
            "max_epochs."
        )
    if trainer.world_size != world_size() or not isinstance(trainer.strategy, SingleDeviceStrategy | SummingStrategy):
        raise InputError(
            f"{type(trainer.strategy).__name__} does not sum the gradients of uneven shares; train with train.run "
            "and trainer.devices, or on one device with strategy='auto'."
        )
    if trainer.precision not in PRECISIONS:
        raise InputError(f"precision={trainer.precision!r} is unknown to Li2Module; use {', '.join(PRECISIONS)}.")


def make_folder(trainer: lightning.Trainer) -> None:
    """Make the folder into which callbacks write, unless it is a URL; the folder of `train.run` exists already."""
    if trainer.is_global_zero and "://" not in str(trainer.default_root_dir):
        Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
