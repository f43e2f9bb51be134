"""Schedule-free AdamW against its definition with three sequences of weights, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from optimizers import OptimizerError
from optimizers.registry import build
from optimizers.schedule_free import ScheduleFree

torch.manual_seed(0)
START = torch.randn(4, 6, dtype=torch.complex128)
GRADIENTS = torch.randn(7, 4, 6, dtype=torch.complex128)


def sequences(start: np.ndarray, gradients: np.ndarray, lr: float, decay: float, warmup: int) -> list[np.ndarray]:
    """y and x after the updates, from x, y and z of the paper; β = .8, .95."""
    x, y, z, v = start, start, start, np.zeros(start.shape)
    rates: list[float] = []
    for t, g in enumerate(gradients, start=1):
        v = 0.95 * v + 0.05 * abs(g) ** 2
        rates.append(lr * (1 - 0.95**t) ** 0.5 * min(1.0, t / max(warmup, 1)))
        z = z - rates[-1] * (g / (v**0.5 + 1e-8) + decay * y)
        c = rates[-1] ** 2 / sum(rate**2 for rate in rates)
        x = (1 - c) * x + c * z
        y = 0.2 * z + 0.8 * x
    return [y, x]


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("warmup", [0, 4])
def test_it_has_the_three_sequences_of_the_paper(is_complex: bool, warmup: int) -> None:
    start, gradients = (x if is_complex else x.real.clone() for x in (START, GRADIENTS))
    weight = Parameter(start.clone())
    optimizer = ScheduleFree([weight], lr=0.1, betas=(0.8, 0.95), weight_decay=0.3, warmup_steps=warmup)
    for gradient in gradients:
        # To the eval point and back, as for a row of metrics.csv.
        optimizer.eval()
        optimizer.train()
        weight.grad = gradient.clone()
        optimizer.step()
    y, x = sequences(start.numpy(), gradients.numpy(), 0.1, 0.3, warmup)
    np.testing.assert_allclose(weight.detach().numpy(), y, rtol=1e-9)
    optimizer.eval()
    np.testing.assert_allclose(weight.detach().numpy(), x, rtol=1e-9)


def test_with_one_rate_the_eval_point_is_the_mean_of_the_steps() -> None:
    """β₂ = 0 makes every rate lr and every z a step of lr along sgn(g)."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ScheduleFree([weight], lr=1.0, betas=(0.9, 0.0))
    for _ in range(4):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    optimizer.eval()
    assert weight.item() == pytest.approx(-(1 + 2 + 3 + 4) / 4)


def test_a_step_at_the_eval_point_is_refused() -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScheduleFree([weight])
    weight.grad = torch.ones(2, 2)
    optimizer.eval()
    with pytest.raises(OptimizerError, match="steps at the train point"):
        optimizer.step()


@pytest.mark.parametrize(
    "given", [{"lr": -1}, {"betas": [0, 0.9]}, {"eps": 0.0}, {"weight_decay": -1}, {"warmup_steps": -1}]
)
def test_what_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(OptimizerError, match=rf"{next(iter(given))} of schedule_free must be"):
        build("schedule_free", [Parameter(START.clone())], given, role="hidden")
