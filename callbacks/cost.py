"""The cost of a step: its time and the optimizer's memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from callbacks.registry import CALLBACKS
from li2_lightning.files import write_json
from li2_lightning.module import Li2Module

SCHEMA_VERSION = 1
# The first steps are slower: they allocate memory that later steps reuse.
WARM_UP = 5


@CALLBACKS.register("cost")
class Cost(lightning.Callback):
    """Writes ``cost.json`` at the last row. It is off by default; ``callbacks.cost.enabled=true`` switches it on.

    =======================  =======================================================================================
    seconds_per_step         median time from one update to the next, measurements and logging included
    seconds_per_update       median time of the optimizer's update alone
    steps                    number of timed steps: those of the last process of the run, without its first five
    runs_together            number of runs in the stack of the last step; times are shares of the time of all
    parameter_bytes          trained parameters
    optimizer_state_bytes    every tensor of the optimizer's state dict, at the end
    =======================  =======================================================================================

    Times depend on the machine and its load: compare them between runs that were made side by side. On an accelerator
    each reading of the clock waits for the device.
    """

    def __init__(self) -> None:
        self._ended: float | None = None
        self._update_began = 0.0
        self._steps: list[float] = []
        self._updates: list[float] = []
        self._together = 1

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        self._update_began = _clock(pl_module.device)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = _clock(pl_module.device)
        if self._ended is not None:
            # In a stack the steps of all runs take this time together.
            self._together = pl_module.position.together
            self._steps.append((now - self._ended) / self._together)
            self._updates.append((now - self._update_began) / self._together)
        self._ended = now

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        if not trainer.is_global_zero:
            return
        steps, updates = (times[WARM_UP:] for times in (self._steps, self._updates))
        write_json(
            Path(trainer.default_root_dir) / "cost.json",
            {
                "schema_version": SCHEMA_VERSION,
                "seconds_per_step": statistics.median(steps) if steps else None,
                "seconds_per_update": statistics.median(updates) if updates else None,
                "steps": len(steps),
                "runs_together": self._together,
                "parameter_bytes": _bytes(p for p in module.network.parameters() if p.requires_grad),
                "optimizer_state_bytes": _bytes(_tensors(module.optimizer.state_dict())),
            },
        )


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
