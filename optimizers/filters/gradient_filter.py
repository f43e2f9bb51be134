"""A gradient filter gives an optimizer other gradients and leaves ``p.grad`` as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizers.closures import ClosureOptimizer
from optimizers.modes import Modes


class GradientFilter(Modes, ClosureOptimizer):
    """An optimizer whose inner optimizer steps on `filtered` gradients; all other code sees the original ones.

    Groups and state are the inner optimizer's own, so schedulers and checkpoints reach them. This base class passes
    on copies, so an optimizer may write into the gradients that it is given. A subclass overrides `filtered`, and
    keeps its memory in attributes and in its state dict.

    Args:
        inner: the optimizer that steps.
    """

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)
        self._share()

    def parts(self) -> list[Optimizer]:
        """The inner optimizer."""
        return [self.inner]

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def filtered(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of ``weight`` that the inner optimizer sees: a new tensor."""
        return gradient.clone()

    def update(self) -> None:
        """Show the filtered gradients to the inner optimizer, and put the others back."""
        seen = [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        try:
            with torch.no_grad():
                for weight, gradient in seen:
                    weight.grad = self.filtered(weight, gradient)
            self.inner.step()
        finally:
            for weight, gradient in seen:
                weight.grad = gradient

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer."""
        # The constructor of the base class adds the groups that the inner optimizer has already.
        if all(param_group is not group for group in self.inner.param_groups):
            self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.inner.load_state_dict(state_dict)
        self._share()

    # The base class keeps only defaults, state and groups. A step that a scheduler has wrapped belongs to this object.
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_") and key != "step"}
