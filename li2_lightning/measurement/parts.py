"""What all measurements share: the part of one run in what is measured of a stack, and the dtype of sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    quantity = cached_property
else:

    class quantity(cached_property):
        """A derived quantity of a `StepState`, computed at most once.

        In a run of a stack it is the run's part of the quantity of the stack, which is computed for all runs at once.
        """

        def __get__(self, state: Any, owner: Any = None) -> Any:
            if state is None or state.whole is None:
                return super().__get__(state, owner)
            value = state.__dict__[self.attrname] = part_of_run(getattr(state.whole, self.attrname), state.place)
            return value


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The real dtype of ratios, of small matrices and of the sums behind them: float64, or float32 on mps."""
    return torch.float32 if device.type == "mps" else torch.float64


def columns_of_runs(columns: Mapping[str, Tensor | float], runs: int) -> list[dict[str, Tensor | float]]:
    """The columns of a stack, each (N,) or one number for all, as the columns of each run."""
    lists = [_values_of_runs(value) if isinstance(value, Tensor) else [value] * runs for value in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)] or [{} for _ in range(runs)]


def _values_of_runs(column: Tensor) -> Sequence[Tensor] | Sequence[float]:
    # On an accelerator `tolist` would wait for the device; there the rows of all runs are moved together.
    values: Sequence[float] = column.tolist() if column.device.type == "cpu" else []
    return values or column.unbind()


def part_of_run(value: Any, run: int) -> Any:
    """One run's part of a quantity of a stack."""
    if isinstance(value, Tensor):
        return value[run]
    if isinstance(value, tuple):
        return tuple(part_of_run(entry, run) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*[part_of_run(getattr(value, field.name), run) for field in fields(value)])
    return value
