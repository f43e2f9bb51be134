"""Adam whose learning rate is estimated while it trains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from li2_lightning.errors import check_values
from optimizers.closures import ClosureOptimizer
from optimizers.registry import register


@register("prodigy")
class Prodigy(ClosureOptimizer):
    """Adam with steps in proportion to d, a lower bound for the distance from the first weights x₀ to a solution.

    With gradient g, β₃ = √β₂ and ⟨A, B⟩ = Re Σ conj(A_ij) B_ij over all tensors of a parameter group, an update is

        m ← β₁m + (1−β₁)d·g        v ← β₂v + (1−β₂)d²|g|²
        r ← β₃r + (1−β₃)lr·d²⟨g, x₀ − x⟩        s ← β₃s + (1−β₃)lr·d²g
        x ← x − lr·d·(m/(√v + dε) + λx)
        d ← max(d, r/‖s‖₁).

    The estimate couples all tensors of a group, so that the runs of a stack take their steps one after the other.

    Args:
        params: the tensors to train, real or complex.
        lr: ≥ 0, a factor to the estimated rate.
        betas: β₁ and β₂ in [0, 1).
        eps: ε > 0.
        weight_decay: λ ≥ 0, decoupled.
        first_distance: d before the first update, above 0 and below any plausible distance.

    Raises:
        InputError: a value out of its range.

    Source: K. Mishchenko and A. Defazio, "Prodigy: an expeditiously adaptive parameter-free learner",
    arXiv:2306.06101, algorithm 4.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        first_distance: float = 1e-6,
    ) -> None:
        check_values(
            "{} of prodigy",
            ("lr", lr, lr >= 0, "at least 0"),
            ("betas", betas, all(0 <= beta < 1 for beta in betas), "in [0, 1)"),
            ("eps", eps, eps > 0, "above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("first_distance", first_distance, first_distance > 0, "above 0"),
        )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "distance": first_distance, "numerator": 0.0})

    @torch.no_grad()
    def update(self) -> None:
        for group in self.param_groups:
            trained = [(weight, weight.grad) for weight in group["params"] if weight.grad is not None]
            if trained:
                self._update(trained, group)

    def _update(self, trained: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        d, lr, (beta1, beta2) = group["distance"], group["lr"], group["betas"]
        beta3 = math.sqrt(beta2)
        along, length = 0.0, 0.0
        for weight, gradient in trained:
            state = self.state[weight]
            if not state:
                state |= {"first": weight.clone(), "m": torch.zeros_like(weight), "s": torch.zeros_like(weight)}
                state["v"] = torch.zeros_like(weight.abs())
            along += (gradient.conj() * (state["first"] - weight)).sum().real.item()
            state["m"].lerp_(d * gradient, 1 - beta1)
            state["v"].lerp_((d * gradient).abs().square(), 1 - beta2)
            state["s"].lerp_(lr * d**2 * gradient, 1 - beta3)
            length += state["s"].abs().sum().item()
            direction = state["m"] / (state["v"].sqrt() + d * group["eps"]) + group["weight_decay"] * weight
            weight.sub_(direction, alpha=lr * d)
        group["numerator"] = beta3 * group["numerator"] + (1 - beta3) * lr * d**2 * along
        if length:
            group["distance"] = max(d, group["numerator"] / length)
