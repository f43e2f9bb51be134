"""Optimizers that train at one point and are evaluated at another; ``train()`` and ``eval()`` move between the two."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch.optim import Optimizer

MODES = ("train", "eval")


def has_eval_point(optimizer: Optimizer) -> bool:
    """Whether the optimizer has both methods, as schedule-free ones do."""
    return all(callable(getattr(optimizer, mode, None)) for mode in MODES)


def switch(optimizers: Iterable[Optimizer], mode: str) -> None:
    """Call the method ``mode``, one of `MODES`, of each optimizer that has an eval point."""
    for optimizer in optimizers:
        if has_eval_point(optimizer):
            getattr(optimizer, mode)()


class Modes:
    """For an optimizer made of others: it has ``train()`` and ``eval()`` where one of its parts has an eval point."""

    def parts(self) -> list[Optimizer]:
        """The optimizers that this one is made of."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name in MODES and any(has_eval_point(part) for part in self.parts()):
            return partial(switch, self.parts(), name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
