"""Rows of metrics on their way from the device to callbacks and loggers.

Besides Lightning's hooks a callback may define:

* ``on_step_state(trainer, module, state)``: called once for each row, to add columns (`StepState.log`);
* ``on_row(trainer, module, row)``: called with each finished row on the host, in order; an undefined value is None, and
  values that the callback adds to the dictionary become part of the row;
* ``on_stage_transition(trainer, module, transition)``: called when a `li2_lightning.theory.stages.Transition` is
  declared;
* ``on_last_row(trainer, module)``: called once, after the ``on_row`` of the last row; not in a fit that an exception
  ends, since an update may be half made;
* ``on_interrupt(trainer, module)``: called when a signal stops the run at the weights of the newest row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from torch import Tensor

from li2_lightning.clock import clock
from li2_lightning.distributed.collectives import from_first
from li2_lightning.measurement.parts import accumulation_dtype

Row = dict[str, float | None]
# The columns that Lightning's callbacks, such as EarlyStopping, can monitor; `Stages` adds the last one.
MONITORED = ("train/loss", "train/accuracy", "test/loss", "test/accuracy", "stage/index")


@dataclass
class Position:
    """What changes with every row; apart from the module, in which setting an attribute takes ten times as long.

    Attributes:
        row: the newest row that was measured.
        finite_row: the newest row whose training loss was finite.
        waiting: rows that are not on the host yet.
        is_needed: whether a callback needs the newest row on the host before the weights change.
        random_state: of the global sources, before the forward pass of the present step.
        together: the number of runs that take this step together, this run included.
    """

    row: int = -1
    finite_row: int | None = None
    waiting: list[dict[str, Tensor | float]] = field(default_factory=list)
    is_needed: bool = False
    random_state: dict[str, Any] = field(default_factory=dict)
    together: int = 1


def offer(trainer: lightning.Trainer, row: Row) -> None:
    """Put the columns `MONITORED` of a row where callbacks and progress bars of Lightning look for metrics.

    ``self.log`` would take a hundred times as long, and cannot be called for the runs of a stack.
    """
    values = {name: value for name in MONITORED if (value := row.get(name)) is not None}
    trainer.progress_bar_metrics.update(values)
    tensors = torch.tensor(list(values.values()), dtype=torch.float64).unbind()
    trainer.callback_metrics.update(zip(values, tensors, strict=True))


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
    columns = [stack.to(accumulation_dtype(stack.device)) for stack in stacks]
    numbers = from_first(torch.cat(columns)).cpu().tolist() if columns else []
    host = iter([number for _, number in sorted(zip(itertools.chain(*by_type.values()), numbers, strict=True))])
    finished: list[Row] = []
    for row in rows:
        values = {name: next(host) if isinstance(value, Tensor) else float(value) for name, value in row.items()}
        finished.append({name: v if math.isfinite(v) or name == "train/loss" else None for name, v in values.items()})
    return finished
