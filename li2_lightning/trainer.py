"""Lightning's Trainer for a run, and the signals, messages and memory settings during the fit."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import lightning
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from rich import box
from rich.console import Console
from rich.table import Table

from li2_lightning._compat import HALF_ON_CPU, LEAF_SPEC, UNUSED_GPU
from li2_lightning.clock import clock
from li2_lightning.config.schema import Config
from li2_lightning.distributed.strategy import SummingStrategy
from li2_lightning.errors import InputError, unknown
from li2_lightning.losses import LOSSES
from li2_lightning.measurement.requirements import EXTRA, REFUSED, why_refused

# glibc's parameters of mallopt, and the largest value it takes for the second.
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST = -1, -3, 2**25


PROFILERS: dict[str, type[Profiler]] = {"advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
# The hooks of this project, which Lightning's profilers do not know of.
OUR_HOOKS = ("on_step_state", "on_row", "on_stage_transition", "on_last_row")


def keep_freed_memory() -> None:
    """Let glibc's malloc keep the memory of freed tensors for later tensors; nothing on other systems.

    By default malloc returns freed blocks of a few MB to the system. A step that allocates them again spends a fifth of
    its time on page faults (3,000 a step at the default size).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(MMAP_THRESHOLD, LARGEST)
            libc.mallopt(TRIM_THRESHOLD, 2**30)


@contextlib.contextmanager
def flushing_tiny_numbers() -> Iterator[None]:
    """Let the CPU take numbers below the normal range of their type (1e-38 in float32) as zero.

    Weight decay shrinks the nodes that only memorized until their features are that small. A processor computes with
    such numbers by microcode, which takes fifty times as long. A thread that torch made earlier keeps its own setting,
    so this comes before the first work.
    """
    was_flushing = sys.float_info.min / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


class _Phases(lightning.Callback):
    """Tells the clock when the steps begin and end."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        clock.phase("steps")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        clock.phase("end")


def build_trainer(
    config: Config,
    directory: Path,
    callbacks: Sequence[lightning.Callback],
    environment: ClusterEnvironment | None = None,
) -> lightning.Trainer:
    """Lightning's Trainer for one run: epochs without limit, ended by ``max_steps``; our own bar and checkpoints.

    Args:
        environment: gives the ranks (`li2_lightning.distributed.rank_group.RankGroup`); None for a single process.

    Raises:
        InputError: Lightning refuses the ``trainer`` section, for example an accelerator that this machine lacks; or
            ``trainer.extra`` has an argument that does not fit.
    """
    trainer = config.trainer
    extra = _extra_arguments(config, directory, callbacks)
    try:
        with quiet_lightning(), warnings.catch_warnings():
            # Lightning replaces the precision with a warning; here a replacement is an error (below).
            warnings.filterwarnings("ignore", message=HALF_ON_CPU)
            # Who says trainer.accelerator=cpu knows it.
            warnings.filterwarnings("ignore", message=UNUSED_GPU)
            arguments: dict[str, Any] = {
                "accelerator": trainer.accelerator,
                "devices": trainer.devices,
                "num_nodes": trainer.num_nodes,
                "strategy": "auto" if environment is None else SummingStrategy(),
                "plugins": environment,
                "precision": trainer.precision,
                "max_steps": config.max_steps,
                "max_epochs": -1,
                "callbacks": [_Phases(), *callbacks],
                "default_root_dir": directory,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                # The loggers get the config with its hash, from the code that makes them.
                "enable_autolog_hparams": False,
                "limit_val_batches": 0,
            }
            built = lightning.Trainer(**arguments | extra)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        where = "Lightning or this machine" if extra else "this machine"
        raise InputError(f"The trainer section does not fit {where}: {reason.rstrip('!')}.") from error
    if built.precision != trainer.precision:
        raise InputError(f"trainer.precision={trainer.precision} does not run on this device; {built.precision} does.")
    check_device(built.strategy.root_device.type, config, callbacks)
    return built


class TableProfiler(SimpleProfiler):
    """Lightning's simple profiler, with a table on stdout of the actions that took longest.

    An action contains others: a backward pass contains the callbacks' hooks of that row.
    """

    most_rows = 20

    def describe(self) -> None:
        sums = {name: sum(durations) for name, durations in self.recorded_durations.items()}
        whole = sums.get("run_training_epoch", 0.0) or 1.0
        table = Table("% of the epoch", "calls", "ms a call", "action", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in sorted(sums, key=lambda name: -sums[name])[: self.most_rows]:
            calls = len(self.recorded_durations[name])
            table.add_row(f"{100 * sums[name] / whole:.1f}", f"{calls}", f"{1e3 * sums[name] / calls:.3f}", name)
        # Wide enough for every name, also where stdout is no terminal.
        Console(width=140, highlight=False).print(table)


def _extra_arguments(config: Config, directory: Path, callbacks: Sequence[lightning.Callback]) -> dict[str, Any]:
    """``trainer.extra`` as arguments of Lightning's Trainer.

    Raises:
        InputError: an argument is unknown or is refused, with the reason.
    """
    for name in config.trainer.extra:
        if (reason := why_refused(name)) is not None:
            raise InputError(f"trainer.extra.{name} is refused: {reason}; trainer.extra takes {', '.join(EXTRA)}.")
        if name not in EXTRA:
            refused = [name for names in REFUSED.values() for name in names]
            raise unknown("key of trainer.extra:", name, [*EXTRA, *refused], ", ".join(EXTRA))
    extra = dict(config.trainer.extra)
    limit = extra.get("max_time")
    if limit is not None and not isinstance(limit, str | Mapping):
        raise InputError(f"trainer.extra.max_time={limit!r} has no unit; write DD:HH:MM:SS, as in 00:00:10:00.")
    chosen = extra.get("profiler")
    if chosen is not None:
        if chosen not in ("simple", *PROFILERS):
            raise unknown("value of trainer.extra.profiler:", chosen, ("simple", *PROFILERS))
        kind = PROFILERS.get(chosen)
        extra["profiler"] = TableProfiler() if kind is None else kind(dirpath=directory, filename="profile")
        for callback in callbacks:
            _profile_hooks(callback, extra["profiler"])
    return extra


def _profile_hooks(callback: lightning.Callback, profiler: Profiler) -> None:
    """Let a profiler time the hooks of this project on a callback, under the names that Lightning gives its own."""

    def timed(name: str, hook: Any) -> Any:
        @functools.wraps(hook)
        def call(*arguments: Any) -> Any:
            with profiler.profile(f"[Callback]{type(callback).__name__}.{name}"):
                return hook(*arguments)

        return call

    for name in OUR_HOOKS:
        if (hook := getattr(callback, name, None)) is not None:
            setattr(callback, name, timed(name, hook))


def join_process_group(config: Config, environment: ClusterEnvironment) -> None:
    """Make the default process group, with the device and the backend that Lightning chooses for this rank."""
    with quiet_lightning():
        build_trainer(config, Path(), [], environment).strategy.setup_environment()


def check_device(device: str, config: Config, callbacks: Sequence[lightning.Callback]) -> None:
    """Raise an `InputError` for a run that needs float64 on Apple's GPU, which has none.

    Ratios and small matrices are computed in float32 there. The linear systems of the ridge readout and of the
    interaction columns are too ill-conditioned for that. A callback or a loss that cannot do without float64 says so
    (``needs_float64``).
    """
    if device != "mps":
        return
    remedy = "use trainer.accelerator=cpu"
    if config.trainer.precision == "64-true":
        raise InputError(f"trainer.precision=64-true needs float64, which mps does not have; {remedy} or 32-true.")
    if config.network.readout == "ridge":
        raise InputError(f"network.readout=ridge is solved in float64, which mps does not have; {remedy}.")
    if getattr(LOSSES.find(config.loss), "needs_float64", False):
        raise InputError(f"loss={config.loss} is computed in float64, which mps does not have; {remedy}.")
    for callback in callbacks:
        if getattr(callback, "needs_float64", False):
            name = type(callback).__name__.lower()
            raise InputError(
                f"callbacks.{name} solves in float64, which mps does not have; {remedy} or "
                f"callbacks.{name}.enabled=false."
            )


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips and banners off the terminal; its warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=LEAF_SPEC, category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Stoppable(Protocol):
    """A module that stops after its backward pass when `stop_signal` is set: a run or a stack of runs."""

    stop_signal: int | None
    signal_handlers: dict[int, Any]


@contextlib.contextmanager
def stopping_on_signals(module: Stoppable) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the run at the end of a step; a second signal has its effect from before."""

    def stop(signum: int, frame: FrameType | None) -> None:
        module.stop_signal = signum
        signal.signal(signum, before[signum])

    before: dict[int, Any] = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            before[signum] = signal.signal(signum, stop)
    except ValueError:
        # Python allows handlers in the main thread alone; a run in another thread (of a notebook) has none.
        before.clear()
    module.signal_handlers = dict.fromkeys(before, stop)
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
