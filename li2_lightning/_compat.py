"""Private names and messages of other libraries, used where the documented interfaces do not suffice.

Each part names the library and the tested version. `tests/test_compat.py` has a test for each entry, which fails with a
sentence when the library changes. Libraries that take long to import are imported where they are used.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Hashable
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    import lightning
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

T = TypeVar("T")

# -- torch 2.13 -------------------------------------------------------------------------------------------------------

write_count: Callable[[Tensor], int] = attrgetter("_version")
"""The number of in-place writes to a tensor, which autograd counts (``Tensor._version``)."""

_KEPT: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def kept_with(tensor: Tensor, purpose: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` returns, kept as long as ``tensor`` lives and nobody writes to it.

    The tokens and labels of a split are the same tensors in every step.

    Args:
        tensor: what the result is made from; the result must hold no reference to it, and so no view of it.
        purpose: distinguishes the results that are kept with one tensor.
        make: computes the result, which several callers share and none may change.
    """
    if tensor.is_inference():  # has no version counter, so a change would go unnoticed
        return make()
    known = _KEPT.get(tensor)  # type: ignore[no-untyped-call]
    if known is None or known[0] != write_count(tensor):
        known = _KEPT[tensor] = write_count(tensor), {}
    results: dict[Hashable, T] = known[1]
    if purpose not in results:
        # A later caller may differentiate, which a tensor made in inference mode does not allow.
        with torch.inference_mode(False):
            results[purpose] = make()
    return results[purpose]


def copy_without_parameters(module: Module) -> Any:
    """A shallow copy of a module, to which other parameters can be registered (``Module._parameters``)."""
    found = copy.copy(module)
    found._parameters = {}
    return found


def onednn_product() -> Callable[..., Tensor] | None:
    """oneDNN's xWᵀ on plain tensors, an operator of torch's compiler; None where torch was built without it.

    Called as ``product(x, W, None, "none", [], "")``.
    """
    operators = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    operator: Callable[..., Tensor] | None = getattr(operators, "default", None)
    return operator


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Whether a hook may change the gradient that a backward pass leaves in a leaf tensor."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


def is_step_overflow(error: RuntimeError) -> bool:
    """Whether torch refuses a step size that the type of the weights cannot hold."""
    return "without overflow" in str(error)


def is_memory_full(error: BaseException) -> bool:
    """Whether no memory is left; torch has a class for a GPU's memory, and a RuntimeError for that of the CPU."""
    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return full or (isinstance(error, RuntimeError) and "can't allocate memory: " in str(error))


# -- Lightning 2.6 ----------------------------------------------------------------------------------------------------

HALF_ON_CPU = ".*AMP with fp16.*"
"""Matches the warning with which Lightning replaces ``16-mixed`` on a CPU by another precision."""
UNUSED_GPU = "GPU available but not used"
"""Matches the warning of Lightning about a Trainer that was told to use the CPU of a machine with a GPU."""
LEAF_SPEC = ".*LeafSpec.*"
"""Matches the warning of torch 2.13 about a class that Lightning 2.6 makes at every fit."""


def dump_checkpoint(trainer: lightning.Trainer, weights_only: bool) -> dict[str, Any]:
    """The contents of the file that ``trainer.save_checkpoint(path, weights_only)`` writes, without the file."""
    checkpoint: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only)
    return checkpoint


def is_first_rank() -> bool:
    """Whether this process is rank 0, also before and after a fit; Lightning keeps the rank on a decorator."""
    from lightning.pytorch.utilities import rank_zero_only

    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def begin_fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    checkpoint: Path | None,
    loop: Any,
) -> None:
    """Do what ``trainer.fit`` does before its loop; the loop of another trainer drives this run.

    Args:
        checkpoint: the state from which the run continues.
        loop: the ``fit_loop`` of the other trainer, which counts the steps of both.
    """
    from lightning.pytorch.trainer import call
    from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

    trainer.fit_loop = loop
    trainer.state.fn, trainer.state.status, trainer.training = TrainerFn.FITTING, TrainerStatus.RUNNING, True
    trainer._data_connector.attach_data(module, datamodule=data)
    trainer.strategy.connect(module)
    trainer._callback_connector._attach_model_logging_functions()
    trainer.strategy.setup_environment()
    call._call_setup_hook(trainer)
    trainer._checkpoint_connector._restore_modules_and_callbacks(checkpoint, weights_only=True)
    trainer.strategy.setup(trainer)
    call._call_callback_hooks(trainer, "on_fit_start")
    call._call_lightning_module_hook(trainer, "on_fit_start")
    trainer._checkpoint_connector.restore_training_state()
    trainer._checkpoint_connector.resume_end()


def end_fit(trainer: lightning.Trainer, error: BaseException | None) -> None:
    """Do what ``trainer.fit`` does after its loop, or after an ``error`` in it."""
    from lightning.pytorch.trainer import call

    if error is not None:
        call._interrupt(trainer, error)
        return
    call._call_callback_hooks(trainer, "on_train_end")
    call._call_callback_hooks(trainer, "on_fit_end")
    call._call_teardown_hook(trainer)


def count_as_stepped(optimizer: Any) -> None:
    """Tell the schedules of torch that an optimizer has made its step; they warn where its own ``step`` was not called.

    Their attribute is ``_opt_called``.
    """
    optimizer._opt_called = True


def call_gradient_hooks(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a leaf tensor after the tensor's hooks, which autograd calls for the leaves of its own graph."""
    for hook in (tensor._backward_hooks or {}).values():
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    return gradient


# -- Hydra 1.3 and OmegaConf 2.3 --------------------------------------------------------------------------------------

UNKNOWN_OVERRIDE = re.compile(r"Could not override '([^']+)'")
"""Hydra's message about an override of an unknown key; the group is the key."""
SEVERAL_VALUES = re.compile(r"Ambiguous value for argument '(.+)'")
"""Hydra's message about ``key=a,b`` without ``-m``; the group is the argument."""
UNKNOWN_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]*)'")
"""Hydra's message about a file that a config group lacks; the groups are the config group and the file."""
KNOWN_CHOICE = re.compile(r"^\t(\S+)$", re.MULTILINE)
"""A line of the same message that names a file of the config group."""


def is_refused_value(error: BaseException) -> bool:
    """Whether Hydra reports that OmegaConf refused the value of an override; OmegaConf's error is the cause."""
    return "Error merging override" in str(error)


def is_unknown_key(error: BaseException) -> bool:
    """Whether OmegaConf refused the key of an override, not the value."""
    return "not in" in str(error)


def unreadable_override(error: BaseException) -> str | None:
    """The argument that Hydra's grammar of overrides cannot read; None for any other error."""
    from hydra.errors import OverrideParseException

    return str(error.override) if isinstance(error, OverrideParseException) else None


def config_groups() -> dict[str, list[str]]:
    """The files of each config group in ``configs/`` and in the folder of ``--config-dir``, while Hydra composes."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    return {name: loader.get_group_options(name) for name in loader.list_groups("") if name != "hydra"}


def apply_overrides(config: DictConfig, overrides: list[Override]) -> None:
    """Apply overrides of values to a composed config in place, as Hydra does after it has merged the chosen files."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    ConfigLoaderImpl._apply_overrides_to_config(overrides, config)


def job_error(result: Any) -> BaseException:
    """The exception that ended a failed job of a sweep; the documented ``return_value`` prints before it raises."""
    error: BaseException = result._return_value
    return error


def end_joblib_workers() -> None:
    """End the workers of joblib 1.6, which would wait some minutes for more work; nothing where joblib is not used."""
    if (loky := sys.modules.get("joblib.externals.loky")) is not None:
        loky.get_reusable_executor().shutdown(wait=True)


# -- W&B 0.31 ---------------------------------------------------------------------------------------------------------

# The name of a segment's folder: when the segment began, and the id of the run.
WANDB_SEGMENT = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")
SYNCED = ".wandb.synced"
"""The ending of the file with which ``wandb sync`` marks a segment as sent."""


def read_wandb_environment() -> None:
    """Let W&B read the environment again if it has changed between two runs, as in a notebook.

    Raises:
        ValueError: W&B refuses a variable.
    """
    import wandb

    # Silent: W&B prints tips otherwise.
    silent = wandb.Settings(silent=True)
    if wandb.setup(settings=silent).did_environment_change() and wandb.run is None:
        wandb.teardown()
        wandb.setup(settings=silent)


def wandb_environment() -> Any:
    """The ``wandb.Settings`` from the environment and from W&B's own files."""
    import wandb

    return wandb.setup().settings


def wandb_reason(error: Exception) -> str:
    """The reason for which W&B's settings refuse a value, without pydantic's text around it."""
    line = re.sub(r"\s+", " ", str(error).partition(" [type=")[0]).rpartition("Value error, ")[2]
    return re.sub(r"^\d+ validation errors? for Settings ", "", line).rstrip(".")


class WandbMessages:
    """Receives the messages that W&B would print if it were not silent. Only these report a failed upload.

    Attributes:
        upload_failed: whether W&B has given up sending.
    """

    def __init__(self) -> None:
        import wandb

        self.upload_failed = False
        wandb.termsetup(wandb_environment(), self)

    def warning(self, message: str) -> None:
        self.upload_failed |= "error while uploading" in message

    info = error = warning


def inspect_segment(segment: Path) -> dict[str, Any] | None:
    """The last ``step`` in the folder of a segment and its ``exit_code``, which is None if the segment was cut off.

    The result is None where W&B cannot read the segment.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(segment)]
    inspection = subprocess.run(command, capture_output=True, text=True, check=False)
    content: dict[str, Any] | None = json.loads(inspection.stdout) if inspection.returncode == 0 else None
    return content
