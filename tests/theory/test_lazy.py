"""Stage I: G_F, ridge readouts, and the two deviations from random features, against plain dense formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from li2_lightning.theory.lazy import (
    backpropagated_gradient,
    center,
    draw_nodes,
    estimated_off_diagonal_sum,
    gram_deviation,
    kernel_deviation,
    off_diagonal_sum,
    ridge_readout,
)
from li2_lightning.verification.findings import draw

DTYPES = [torch.float64, torch.complex128]
SIZES = [(12, 30), (30, 12), (12, 12)]  # n < K, n > K, n = K


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(scale, 1e-3))


def projection(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n


def test_center_is_the_projection_off_the_constants() -> None:
    rows = draw(3, 8, 5)
    close(center(rows), projection(8) @ rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_backpropagated_gradient_descends_eq_1(dtype: torch.dtype) -> None:
    """G_F = −∂J/∂F with J = ½‖P₁⊥(Y − Re FV)‖² + (η/2)‖V‖², by autograd."""
    F, V, Y = draw(9, 6, dtype=dtype).requires_grad_(), draw(6, 4, dtype=dtype, seed=1), draw(9, 4, seed=2)
    outputs = F @ V
    outputs = outputs.real if outputs.is_complex() else outputs
    J = 0.5 * (projection(9) @ (Y - outputs)).square().sum() + 0.7 / 2 * V.abs().square().sum()
    (gradient,) = torch.autograd.grad(J, F)
    close(backpropagated_gradient(center(Y - outputs.detach()), V), -gradient, 1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
@pytest.mark.parametrize("ridge", [1e-3, 0.5, 100.0])
def test_ridge_readout_solves_the_normal_equations(n: int, K: int, ridge: float, dtype: torch.dtype) -> None:
    F, Y = draw(n, K, dtype=dtype), draw(n, 4, seed=1)
    normal = F.mH @ F + ridge * torch.eye(K, dtype=dtype)
    close(ridge_readout(F, Y, ridge), torch.linalg.solve(normal, F.mH @ Y.to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
def test_ridge_readout_is_where_the_objective_has_no_slope(n: int, K: int, dtype: torch.dtype) -> None:
    """Eq. 1, centred over samples: no slope at V*, and slope beside it."""
    F, Y, ridge = center(draw(n, K, dtype=dtype)), center(draw(n, 4, seed=1)), 0.3
    V = ridge_readout(F, Y, ridge)

    def slope(V: Tensor) -> float:
        V = V.clone().requires_grad_()
        J = 0.5 * (Y - F @ V).abs().square().sum() + ridge / 2 * V.abs().square().sum()
        return torch.autograd.grad(J, V)[0].abs().max().item()

    assert slope(V) < 1e-10
    assert slope(1.01 * V) > 1e-4


def test_ridge_readout_keeps_the_dtype_solves_in_double_and_takes_batches() -> None:
    F, Y = draw(3, 10, 6), draw(3, 10, 4, seed=1)
    batched = ridge_readout(F, Y, 0.1)
    close(batched, torch.stack([ridge_readout(f, y, 0.1) for f, y in zip(F, Y, strict=True)]), 1e-12)
    # A Gram matrix of condition 1e10 cannot be solved in float32.
    steep = (F[0] * torch.logspace(0, -5, 6, dtype=torch.float64)).float()
    V = ridge_readout(steep, Y[0].float(), 1e-10)
    assert V.dtype == torch.float32
    close(V.double(), ridge_readout(steep.double(), Y[0].float().double(), 1e-10), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
def test_proposition_1(n: int, K: int, dtype: torch.dtype) -> None:
    """At V*: G_F = P_η ỸỸᵀF̃B = η(F̃F̃ᴴ+ηI)⁻¹ ỸỸᵀF̃ (F̃ᴴF̃+ηI)⁻¹."""
    F, Y, ridge = center(draw(n, K, dtype=dtype)), center(draw(n, 4, seed=1)).to(dtype), 0.7
    P = ridge * torch.linalg.inv(F @ F.mH + ridge * torch.eye(n, dtype=dtype))
    B = torch.linalg.inv(F.mH @ F + ridge * torch.eye(K, dtype=dtype))
    V = ridge_readout(F, Y, ridge)
    close(backpropagated_gradient(center(Y - F @ V), V), P @ Y @ Y.mH @ F @ B)


def dense_gram_deviation(F: Tensor) -> Tensor:
    """By its definition, entry by entry."""
    gram = (projection(len(F)).to(F.dtype) @ F).mH @ F
    K = len(gram)
    off = sum(gram[i, j].abs() for i in range(K) for j in range(K) if i != j) / (K * (K - 1))
    return off / gram.diagonal().real.mean()


def dense_kernel_deviation(F: Tensor) -> Tensor:
    """By least squares over a and b, on the entries of the n×n matrices."""
    n, kernel = len(F), F @ F.mH
    basis = torch.stack([torch.eye(n).flatten(), torch.ones(n * n)], dim=1).to(F.dtype)
    solution = torch.linalg.lstsq(basis, kernel.reshape(-1, 1)).solution
    return (kernel.reshape(-1, 1) - basis @ solution).norm() / kernel.norm()


def deviations(F: Tensor, draws: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The two from the whole Gram matrix, or estimated from so many drawn nodes."""
    mean = F.mean(dim=0)
    centered = F - mean
    gram = centered.mH @ centered
    norms = gram.diagonal().real.clone()
    spread = (centered @ mean.conj()).abs().square().sum()

    def total(power: int, weights: Tensor) -> Tensor:
        values = gram.abs() ** power
        if draws is None:
            return off_diagonal_sum(values)
        order = torch.randperm(len(norms), generator=torch.Generator().manual_seed(seed))
        nodes = draw_nodes(weights, order, draws)
        return estimated_off_diagonal_sum(values[nodes][:, nodes], nodes, weights)

    return (
        gram_deviation(total(1, norms.sqrt()), norms),
        kernel_deviation(total(2, norms), norms, mean, spread, len(F)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_both_deviations_are_exact_from_all_columns(n: int, K: int, shift: float, dtype: torch.dtype) -> None:
    """Also for features whose means and lengths differ from node to node."""
    F = (draw(n, K, dtype=dtype) + shift * draw(K, dtype=dtype, seed=1)) * torch.linspace(0.5, 3, K)
    gram, kernel = deviations(F)
    close(gram, dense_gram_deviation(F))
    close(kernel, dense_kernel_deviation(F))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_deviation_is_zero_for_a_multiple_of_the_identity_plus_a_constant(dtype: torch.dtype) -> None:
    n = 9
    roots = torch.linalg.cholesky(2 * torch.eye(n, dtype=dtype) + 3 * torch.ones(n, n, dtype=dtype))
    F = roots @ torch.linalg.qr(draw(n, n, dtype=dtype)).Q
    assert deviations(F)[1] < 1e-7  # the root of a difference near 1e-16
    assert deviations(F + 0.3 * draw(n, n, dtype=dtype, seed=1))[1] > 0.05


def test_estimated_deviations_of_random_features_are_near_the_exact_ones() -> None:
    """σ = x² of Gaussian pre-activations, lengths spread a hundredfold: 128 draws of 512 nodes, 10 times within 6 %."""
    z = draw(300, 20) @ draw(20, 512, seed=1) * torch.logspace(0, 1, 512, dtype=torch.float64)
    exact = torch.stack(deviations(z.square()))
    for seed in range(10):
        ratio = torch.stack(deviations(z.square(), 128, seed)) / exact
        assert ((ratio - 1).abs() < 0.06).all(), ratio
        assert ((ratio - 1).abs() > 1e-9).all(), "an estimate is not exact"


def test_nodes_are_drawn_in_proportion_to_their_weights() -> None:
    weights, order = torch.tensor([1.0, 0.0, 2.0, 5.0]), torch.tensor([2, 3, 0, 1])
    counts = torch.bincount(draw_nodes(weights, order, 800), minlength=4)
    assert counts.tolist() == [100, 0, 200, 500]


def test_the_estimate_is_exact_where_values_are_products_of_the_weights() -> None:
    """Also with a node that is drawn several times: only pairs of different nodes count."""
    weights = torch.tensor([1.0, 2.0, 30.0, 4.0], dtype=torch.float64)
    values = 7 * torch.outer(weights, weights)
    nodes = draw_nodes(weights, torch.arange(4), 6)
    assert len(set(nodes.tolist())) < 6
    close(estimated_off_diagonal_sum(values[nodes][:, nodes], nodes, weights), off_diagonal_sum(values))
