"""Rows of metrics on their way from the device to callbacks and loggers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor

from li2_lightning.clock import clock
from li2_lightning.distributed.collectives import from_first

Row = dict[str, float | None]


def call_hook(trainer: lightning.Trainer, name: str, *args: Any) -> None:
    """Call the hook ``name`` of this project on every callback that has it, in the order of the callbacks.

    Its time is that of the rows, or of the part of the run that the attribute ``part`` of the callback names.
    """
    with clock.part("rows"):
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            hook: Callable[..., None] | None = getattr(callback, name, None)
            if hook is None:
                continue
            part: str | None = getattr(callback, "part", None)
            if part is None:
                hook(trainer, *args)
            else:
                with clock.part(part):
                    hook(trainer, *args)


def rows_to_host(rows: list[dict[str, Tensor | float]]) -> list[Row]:
    """The rows as Python floats, by one transfer; NaN and ±inf become None except in train/loss."""
    if not rows:
        return []
    tensors = [value for row in rows for value in row.values() if isinstance(value, Tensor)]
    by_type: dict[torch.dtype, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_type.setdefault(tensor.dtype, []).append(index)
    stacks = [torch.stack([tensors[index] for index in members]).detach() for members in by_type.values()]
    columns = [stack.to(_widest(stack)) for stack in stacks]
    numbers = from_first(torch.cat(columns)).cpu().tolist() if columns else []
    host = iter([number for _, number in sorted(zip(itertools.chain(*by_type.values()), numbers, strict=True))])
    finished: list[Row] = []
    for row in rows:
        values = {name: next(host) if isinstance(value, Tensor) else float(value) for name, value in row.items()}
        finished.append({name: v if math.isfinite(v) or name == "train/loss" else None for name, v in values.items()})
    return finished


def _widest(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
