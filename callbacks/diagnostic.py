"""The base class of callbacks that add columns to the rows."""

from __future__ import annotations

from typing import Any

import lightning
from torch import Tensor

from li2_lightning.errors import InputError
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module


class Cadence:
    """Says which rows are due: row 0, the first row at or after each multiple of ``every_n_steps``, and the last row.

    Args:
        option: the config key below ``callbacks``, for the error message.
        every_n_steps: a positive integer.
    """

    def __init__(self, option: str, every_n_steps: int) -> None:
        self.every_n_steps = positive_integer(option, every_n_steps)
        self.last_row = -1

    def due(self, step: int, is_last: bool = False) -> bool:
        """Whether row ``step`` is due. Call it exactly once a row, with ``is_last`` of the row's `StepState`."""
        due = is_last or self.last_row < 0 or step // self.every_n_steps > self.last_row // self.every_n_steps
        self.last_row = step
        return due


class Diagnostic(lightning.Callback):
    """Adds columns to the rows that are due.

    In a stack of runs each run has an object of its own. A class that sets ``takes_stacks`` measures the rows of all
    runs at once: the first object that is due measures the `StepState.whole`, whose tensors have a leading axis, and
    every object logs its part. Such a class reads nothing but the state, the configuration that all runs share, and
    its own options. Any other class measures the `StepState` of its run.

    Args:
        every_n_steps: the cadence of the columns; 1 means every row.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self.cadence = Cadence(f"{type(self).__name__.lower()}.every_n_steps", every_n_steps)

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        """The columns of this row, name → scalar on the device; NaN where a value is undefined."""
        raise NotImplementedError

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        if self.cadence.due(state.step, state.is_last):
            self.log_columns(module, state)

    def log_columns(self, module: Li2Module, state: StepState, part: str = "measure") -> None:
        """Add the columns that the method ``part`` measures to the row of this run."""
        measure = getattr(self, part)
        if state.whole is None or not vars(type(self)).get("takes_stacks", False):
            state.log_all(measure(module, state))
        else:
            whole = state.whole
            state.log_all(whole.for_each_run((type(self), part), lambda: measure(module, whole))[state.place])

    def state_dict(self) -> dict[str, Any]:
        return {"last_row": self.cadence.last_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cadence.last_row = state_dict["last_row"]


def positive_integer(option: str, value: Any) -> int:
    """``value`` if it is an integer ≥ 1; else an `InputError` that names ``callbacks.<option>``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"callbacks.{option}={value!r} does not fit; it is an integer of at least 1.")
    return value
