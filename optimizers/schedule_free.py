"""AdamW without a schedule: gradients are computed at one point, and evaluation is at an average of earlier points."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from li2_lightning.errors import InputError, check_values
from optimizers.closures import ClosureOptimizer
from optimizers.registry import register


@register("schedule_free")
class ScheduleFree(ClosureOptimizer):
    """AdamW whose averaged weights x replace a decreasing learning rate.

    With gradient g at the train point y, in update t = 1, 2, …

        v ← β₂v + (1−β₂)|g|²
        γ = lr·√(1−β₂ᵗ)·min(1, t/warmup_steps)
        z ← z − γ·(g/(√v + ε) + λy)
        x ← (1−c)x + cz,    c = γ²/(sum of γ² so far)
        y ← (1−β₁)z + β₁x.

    The parameter holds y after `train` and x after `eval`, and the state z and v; x is (y − (1−β₁)z)/β₁. At first
    x = y = z.

    Args:
        params: the tensors to train, real or complex.
        lr: ≥ 0; without a schedule, larger than AdamW's.
        betas: β₁ in (0, 1), the share of x in y, and β₂ in [0, 1).
        eps: ε > 0.
        weight_decay: λ ≥ 0, decoupled, at y.
        warmup_steps: updates with a growing learning rate, ≥ 0.

    Raises:
        InputError: a value out of its range, a step after `eval` without `train`.

    Source: A. Defazio et al., "The road less scheduled", arXiv:2405.15682, algorithm 1.
    """

    takes_stacks = True  # every entry is updated by itself (`optimizers.joint`)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        check_values(
            "{} of schedule_free",
            ("lr", lr, lr >= 0, "at least 0"),
            ("betas", betas, 0 < betas[0] < 1 and 0 <= betas[1] < 1, "in (0, 1) and in [0, 1)"),
            ("eps", eps, eps > 0, "above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("warmup_steps", warmup_steps, warmup_steps >= 0, "at least 0"),
        )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__(params, {**defaults, "at_train_point": True})

    def train(self) -> None:
        """Move the weights to the train point y."""
        self._move(to_train_point=True)

    def eval(self) -> None:
        """Move the weights to the eval point x."""
        self._move(to_train_point=False)

    @torch.no_grad()
    def _move(self, to_train_point: bool) -> None:
        for group in self.param_groups:
            if group["at_train_point"] == to_train_point:
                continue
            group["at_train_point"] = to_train_point
            share = group["betas"][0]
            for weight in group["params"]:
                if "z" in self.state[weight]:
                    weight.lerp_(self.state[weight]["z"], 1 - share if to_train_point else 1 - 1 / share)

    @torch.no_grad()
    def update(self) -> None:
        for group in self.param_groups:
            if not group["at_train_point"]:
                raise InputError("schedule_free steps at the train point; call train() after eval().")
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, y: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (share, memory) = self.state[y], group["betas"]
        if not state:
            state |= {"z": y.clone(), "v": torch.zeros_like(y.abs()), "updates": 0, "weights": 0.0}
        state["updates"] += 1
        t, warmup = state["updates"], group["warmup_steps"]
        rate = group["lr"] * math.sqrt(1 - memory**t) * (min(1.0, t / warmup) if warmup else 1.0)
        state["weights"] += rate**2
        c = rate**2 / state["weights"] if state["weights"] else 0.0
        state["v"].lerp_(gradient.abs().square(), 1 - memory)
        direction = gradient / (state["v"].sqrt() + group["eps"]) + group["weight_decay"] * y
        # y from y and z, without x: a learning rate of 0 then leaves every bit.
        y.lerp_(state["z"], c).sub_(direction, alpha=rate * (1 - share * (1 - c)))
        state["z"].sub_(direction, alpha=rate)
