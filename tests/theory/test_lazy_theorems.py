"""Stage I: the limit of G_F and its early growth, against a readout that really flows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from li2_lightning.theory.lazy import (
    backpropagated_gradient,
    center,
    early_gradient,
    lazy_limit,
    readout_flow,
)
from li2_lightning.verification.findings import distance, draw

DTYPES = [torch.float64, torch.complex128]
SIZES = [(12, 30), (30, 12), (12, 12)]


def problem(n: int, K: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return draw(n, K, dtype=dtype), torch.eye(4, dtype=torch.float64)[torch.arange(n) % 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
@pytest.mark.parametrize("ridge", [0.1, 1.0, 100.0])
def test_proposition_1_in_its_dense_form(n: int, K: int, ridge: float, dtype: torch.dtype) -> None:
    F, Y = problem(n, K, dtype)
    centered, targets = center(F), center(Y).to(dtype)
    P = ridge * torch.linalg.inv(centered @ centered.mH + ridge * torch.eye(n, dtype=dtype))
    B = torch.linalg.inv(centered.mH @ centered + ridge * torch.eye(K, dtype=dtype))
    assert distance(lazy_limit(F, Y, ridge), P @ targets @ targets.mH @ centered @ B) < 1e-12


@pytest.mark.parametrize(("n", "K"), [(6, 10), (10, 6)])
def test_a_readout_that_flows_brings_g_f_to_the_limit(n: int, K: int) -> None:
    """Runge–Kutta steps on V̇ = −∂J/∂V by autograd until ηt = 32, from a random start."""
    (F, Y), ridge, step = problem(n, K), 2.0, 0.02
    V = draw(K, 4, seed=1)
    G_start = backpropagated_gradient(center(Y - F @ V), V)

    def slope(V: Tensor) -> Tensor:
        V = V.detach().requires_grad_()
        J = 0.5 * center(Y - F @ V).square().sum() + ridge / 2 * V.square().sum()
        return -torch.autograd.grad(J, V)[0]

    for _ in range(800):
        a = slope(V)
        b = slope(V + step / 2 * a)
        c = slope(V + step / 2 * b)
        V = V + step / 6 * (a + 2 * b + 2 * c + slope(V + step * c))
    limit = lazy_limit(F, Y, ridge)
    assert distance(backpropagated_gradient(center(Y - F @ V), V), limit) < 1e-8
    assert distance(G_start, limit) > 0.5


def test_the_closed_form_of_the_flow_is_the_integrated_one() -> None:
    (F, Y), ridge, beta = problem(6, 10), 0.5, 1.7
    V = start = draw(10, 4, seed=1)
    step, steps = 1e-4, 3000
    F_c, Y_c = center(F), center(Y)
    for _ in range(steps):  # midpoint rule
        half = V + step / 2 * (beta * F_c.mT @ (Y_c - beta * F_c @ V) - ridge * V)
        V = V + step * (beta * F_c.mT @ (Y_c - beta * F_c @ half) - ridge * half)
    assert distance(readout_flow(F, Y, ridge, step * steps, start, beta), V) < 1e-6
    assert distance(start, V) > 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_g_f_grows_early_like_beta_squared_t(dtype: torch.dtype, beta: float) -> None:
    """The error falls like t: G_F(t) = β²tỸỸᵀF̃ + O(t²) from V(0) = 0."""
    F, Y = problem(12, 30, dtype)
    errors = []
    for time in (1e-5, 1e-6):
        V = readout_flow(F, Y, 0.1, time, torch.zeros(30, 4, dtype=dtype), beta)
        R = center(Y).to(dtype) - beta * center(F) @ V
        errors.append(distance(beta * R @ V.mH, early_gradient(F, Y, time, beta)))
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)


def test_a_random_start_of_size_alpha_adds_noise_of_size_alpha() -> None:
    F, Y = problem(12, 30)
    early = early_gradient(F, Y, 1e-6)
    noise = []
    for alpha in (1e-4, 1e-6):
        V = readout_flow(F, Y, 0.1, 1e-6, alpha * draw(30, 4, seed=1))
        noise.append((backpropagated_gradient(center(Y - F @ V), V) - early).norm().item())
    assert noise[0] / noise[1] == pytest.approx(100, rel=0.05)
    assert noise[0] > 5 * early.norm()


def test_with_more_nodes_than_samples_an_output_scale_divides_the_limit_by_its_square() -> None:
    F, Y = problem(12, 30)
    beta, ridge = 3.0, 1e-6
    V = readout_flow(F, Y, ridge, 1e9, torch.zeros(30, 4, dtype=torch.float64), beta)
    R = center(Y) - beta * center(F) @ V
    limit = beta * R @ V.mT
    assert distance(limit, lazy_limit(F, Y, ridge / beta**2)) < 1e-6
    assert distance(limit, lazy_limit(F, Y, ridge) / beta**2) < 1e-5


def test_for_large_ridge_the_limit_is_the_independent_form_over_it() -> None:
    F, Y = problem(12, 30)
    independent = center(Y) @ center(Y).mT @ center(F)
    assert distance(lazy_limit(F, Y, 1e6), independent / 1e6) < 1e-3
    assert distance(lazy_limit(F, Y, 1.0), independent) > 0.5


def test_batches_and_single_precision() -> None:
    F, Y = draw(3, 9, 5).float(), draw(3, 9, 2, seed=1).float()
    limit = lazy_limit(F, Y, 0.3)
    assert limit.dtype == torch.float32
    for i in range(3):
        assert distance(limit[i], lazy_limit(F[i], Y[i], 0.3)) < 1e-6
