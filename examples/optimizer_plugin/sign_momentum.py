"""Steps of one size: every weight moves by lr against the sign of its momentum."""

import torch
from torch.optim import Optimizer


class SignMomentum(Optimizer):
    """m ← βm + (1−β)g,  w ← (1 − lr·λ)w − lr·sign(m).

    Args:
        params: what to train.
        lr: how far every weight moves in a step.
        momentum: β in [0, 1).
        weight_decay: λ.
    """

    def __init__(self, params, lr=1e-3, momentum=0.9, weight_decay=0.0):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, not {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Gradients are read and never written; what must survive a checkpoint is in self.state."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(momentum.sgn(), alpha=group["lr"])
