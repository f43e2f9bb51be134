"""A low-pass filter before any optimizer: the slowly changing part of a gradient is amplified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from li2_lightning.errors import InputError, check_choice, check_values
from optimizers.filters.named_filter import Inner, NamedFilter
from optimizers.registry import register

Filter = Literal["ema", "moving_average"]


@register("slow_gradients")
class SlowGradients(NamedFilter):
    """Any optimizer, on gradients whose slow part is amplified.

    The inner optimizer sees, for every parameter, instead of the gradient g

        g + λμ,    μ ← αμ + (1 − α)g, at first μ = g    (``filter="ema"``)
        g + λμ,    μ = mean of the last w gradients     (``"moving_average"``; g alone in the first w − 1 steps)

    and nothing else changes: ``p.grad`` is what it was, weight decay is the inner optimizer's.

    Args:
        params: the tensors to train.
        inner: name of the optimizer that follows the filtered gradients, or a list (`NamedFilter`).
        filter: ``"ema"`` or ``"moving_average"``.
        amplification: λ ≥ 0; 0 is the inner optimizer by itself.
        filter_decay: α in [0, 1), for ``"ema"``; the filter remembers about 1/(1 − α) steps.
        window: w ≥ 1, for ``"moving_average"``; takes w times the memory of the gradients.
        hyperparameters: of the inner optimizer.

    Raises:
        InputError: a value out of its range, an inner optimizer that cannot be built with its
            hyperparameters or takes one of the names above.

    Source: J. Lee et al., "Grokfast: accelerated grokking by amplifying slow gradients" (2024), algorithms 1 and 2.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        inner: Inner = "adam",
        filter: Filter = "ema",
        amplification: float = 2.0,
        filter_decay: float = 0.98,
        window: int = 100,
        **hyperparameters: Any,
    ) -> None:
        check_choice("filter", filter, ("ema", "moving_average"))
        check_values(
            "{}",
            ("amplification", amplification, amplification >= 0, "at least 0"),
            ("filter_decay", filter_decay, 0 <= filter_decay < 1, "at least 0 and below 1"),
            ("window", window, isinstance(window, int) and window >= 1, "a whole number from 1 on"),
        )
        super().__init__(params, inner, hyperparameters)
        self.filter, self.amplification, self.filter_decay, self.window = filter, amplification, filter_decay, window
        self.slow: dict[Tensor, dict[str, Any]] = {}

    def filtered(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """g + λμ; updates the memory of g."""
        slow = self.slow.setdefault(weight, {})
        if self.filter == "ema":
            if not slow:
                slow["mean"] = gradient.clone()
            mean: Tensor = slow["mean"]
            # In the first step both are g, and so is any mean of the two.
            return gradient + self.amplification * mean.lerp_(gradient, 1 - self.filter_decay)
        if not slow:
            slow |= {"last": gradient.new_zeros(self.window, *gradient.shape), "sum": torch.zeros_like(gradient)}
            slow["steps"] = 0
        oldest: Tensor = slow["last"][slow["steps"] % self.window]
        slow["sum"] += gradient - oldest
        oldest.copy_(gradient)
        slow["steps"] += 1
        if slow["steps"] % self.window == 0:  # rounding errors would add up
            slow["sum"] = slow["last"].sum(dim=0)
        if slow["steps"] < self.window:
            return gradient.clone()
        return gradient.add(slow["sum"], alpha=self.amplification / self.window)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and the filter's under ``slow_gradients``."""
        weights = [p for group in self.param_groups for p in group["params"]]
        filters = [dict(self.slow.get(weight, {})) for weight in weights]
        return {**super().state_dict(), "slow_gradients": {"of": self._kind(), "filters": filters}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            InputError: it is of another inner optimizer or another filter (nothing is changed).
        """
        state_dict = dict(state_dict)
        saved = state_dict.pop("slow_gradients", {"of": "no slow_gradients"})
        if saved["of"] != self._kind():
            raise InputError(f"The checkpoint is of {saved['of']} and this run has {self._kind()}.")
        super().load_state_dict(state_dict)
        weights = [p for group in self.param_groups for p in group["params"]]
        self.slow = {
            weight: {key: v.to(weight.device, copy=True) if isinstance(v, Tensor) else v for key, v in slow.items()}
            for weight, slow in zip(weights, saved["filters"], strict=True)
        }

    def _kind(self) -> str:
        memory = self.filter_decay if self.filter == "ema" else self.window
        return f"slow_gradients({self.inner_name}, {self.filter} {memory:g})"
