"""The step of our optimizers, and its closure: Lightning passes one to every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

Closure = Callable[[], Any]


def evaluate(closure: Closure | None) -> Any:
    """What ``closure`` returns, with gradients enabled; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class ClosureOptimizer(Optimizer):
    """The base of our optimizers; a subclass overrides `update`."""

    def step(self, closure: Closure | None = None) -> Any:
        """Update every parameter that has a gradient; gradients are read, never written.

        Args:
            closure: recomputes loss and gradients first, if given.

        Returns:
            What the closure returned.
        """
        loss = evaluate(closure)
        self.update()
        return loss

    def update(self) -> None:
        """Make the step with the present gradients."""
        raise NotImplementedError
