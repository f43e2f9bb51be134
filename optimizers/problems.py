"""The problems that the checks of an optimizer are trained on (`optimizers.check`).

Each problem gives parameters and a function from them to a scalar loss; everything is drawn from seed 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from optimizers.modes import switch

Loss = Callable[[Tensor], Tensor]


def quadratic(dtype: torch.dtype = torch.float64) -> tuple[Parameter, Loss]:
    """½ Σ h_ij (W_ij − T_ij)², a 6×9 matrix, h from .1 to 10: every entry for itself, condition number 100."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 9, generator=generator, dtype=dtype)
    curvature = torch.logspace(-1, 1, 54, dtype=torch.float64).view(6, 9).to(target.real.dtype)
    return Parameter(torch.zeros_like(target)), lambda W: 0.5 * (curvature * (W - target).abs().square()).sum()


def least_squares(dtype: torch.dtype = torch.float64) -> tuple[Parameter, Loss]:
    """½‖XW − Y‖²/32, a 6×9 matrix that some W solves exactly: the entries of a column work together."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(32, 6, generator=generator, dtype=dtype)
    Y = X @ torch.randn(6, 9, generator=generator, dtype=dtype)
    return Parameter(torch.zeros(6, 9, dtype=dtype)), lambda W: 0.5 * (X @ W - Y).abs().square().sum() / len(X)


def network() -> tuple[dict[str, Parameter], Callable[[], Tensor]]:
    """W, two extra residual layers and V, and a loss in which all of them take part."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W": (6, 9), "H1": (9, 9), "H2": (9, 9), "V": (9, 4)}
    weights = {
        name: Parameter(0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64))
        for name, shape in shapes.items()
    }
    X = torch.randn(32, 6, generator=generator, dtype=torch.float64)
    Y = torch.randn(32, 4, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        F = (X @ weights["W"]).square()
        for layer in ("H1", "H2"):
            F = (F + F @ weights[layer]).tanh()
        return (F @ weights["V"] - Y).square().mean()

    return weights, loss


def train(optimizer: Optimizer, weight: Parameter, loss: Loss, steps: int) -> Tensor:
    """A copy of the weight after ``steps`` updates."""
    switch([optimizer], "train")
    for _ in range(steps):
        update(optimizer, loss(weight))
    return weight.detach().clone()


def update(optimizer: Optimizer, loss: Tensor) -> None:
    """One update by the gradient of a scalar loss."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
