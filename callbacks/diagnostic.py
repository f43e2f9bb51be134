"""The base classes of callbacks that act in some rows, and of those that add columns to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
from torch import Tensor

from li2_lightning.cadence import cadence, is_due
from li2_lightning.errors import InputError
from li2_lightning.measurement.parts import columns_of_runs
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.theory.stages import Transition


class Cadence:
    """Says which rows are due: row 0, the first row at or after each mark of the cadence, and the last row.

    Args:
        option: the config key below ``callbacks``, for the error message.
        every_n_steps: a cadence (`li2_lightning.cadence`): a number of steps, ``log`` or ``logN``.

    Attributes:
        next_is_due: whether the next row is due in any case.
    """

    def __init__(self, option: str, every_n_steps: int | str) -> None:
        self.every_n_steps = cadence(f"callbacks.{option}", every_n_steps)
        self.last_row = -1
        self.next_is_due = False

    def due(self, step: int, is_last: bool = False) -> bool:
        """Whether row ``step`` is due. Call it exactly once a row, with ``is_last`` of the row's `StepState`."""
        due = is_last or self.next_is_due or is_due(self.every_n_steps, step, self.last_row)
        self.last_row, self.next_is_due = step, False
        return due


class Paced(lightning.Callback):
    """Acts in the rows that are due. With ``after_transitions`` the first row after a stage transition is due, too.

    Args:
        every_n_steps: the cadence; 1 means every row, ``log`` 10 rows a decade.
    """

    after_transitions = False

    def __init__(self, every_n_steps: int | str) -> None:
        self.cadence = Cadence(f"{type(self).__name__.lower()}.every_n_steps", every_n_steps)

    def act(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        """What the callback does in a row that is due."""
        raise NotImplementedError

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        if self.cadence.due(state.step, state.is_last):
            self.act(trainer, module, state)

    def on_stage_transition(self, trainer: lightning.Trainer, module: Li2Module, transition: Transition) -> None:
        self.cadence.next_is_due = self.after_transitions

    def state_dict(self) -> dict[str, Any]:
        waits = {"transition": self.cadence.next_is_due} if self.after_transitions else {}
        return {"last_row": self.cadence.last_row, **waits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cadence.last_row = state_dict["last_row"]
        self.cadence.next_is_due = state_dict.get("transition", False)


class Diagnostic(Paced):
    """Adds columns to the rows that are due.

    In a stack of runs each run has an object of its own. A class that sets ``takes_stacks`` measures the rows of all
    runs at once, from the `StepState` of the stack, whose tensors have a leading axis. Such a class reads nothing but
    the state, the configuration that all runs share, and its own options. Any other class measures the `StepState` of
    its run.

    Args:
        every_n_steps: the cadence of the columns; 1 means every row, ``log`` 10 rows a decade.
    """

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        """The columns of this row, name → scalar on the device; NaN where a value is undefined."""
        raise NotImplementedError

    def act(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        state.log_all(self.measure(module, state))

    @classmethod
    def on_stack_state(
        cls, callbacks: Sequence[Any], modules: Sequence[Li2Module], whole: StepState, states: Sequence[StepState]
    ) -> None:
        """`on_step_state` for all runs of a stack.

        Args:
            callbacks, modules, states: of each run.
            whole: the state of the stack.
        """
        due = [callback.cadence.due(whole.step, whole.is_last) for callback in callbacks]
        cls.log_stack(callbacks[0].measure, modules[0], whole, states, due)

    @staticmethod
    def log_stack(
        measure: Callable[[Li2Module, StepState], Mapping[str, Tensor | float]],
        module: Li2Module,
        whole: StepState,
        states: Sequence[StepState],
        due: Sequence[bool],
    ) -> None:
        """Measure the columns of a stack and add them to the rows of the runs that are due."""
        if any(due):
            columns = columns_of_runs(measure(module, whole), len(states))
            for state, own, is_due in zip(states, columns, due, strict=True):
                if is_due:
                    state.log_all(own)


def positive_integer(option: str, value: Any) -> int:
    """``value`` if it is an integer ≥ 1; else an `InputError` that names ``callbacks.<option>``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"callbacks.{option}={value!r} does not fit; it is an integer of at least 1.")
    return value
