"""Progress measures against their definitions on dense matrices."""

from __future__ import annotations

import pytest
import torch

from li2_lightning.networks.activations import find_activation
from li2_lightning.theory.measures import (
    KernelColumns,
    effective_rank,
    gini,
    kernel_alignment,
    participation_ratio,
    spectrum,
    tangent_kernel,
    task_kernel,
)
from li2_lightning.verification.findings import draw


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_ranks_are_those_of_the_singular_values(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = draw(*shape, dtype=dtype)
    p = torch.linalg.svdvals(matrix).square()
    p = p / p.sum()
    found = spectrum(matrix)
    assert effective_rank(found).item() == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-9)
    assert participation_ratio(found).item() == pytest.approx(1 / p.square().sum().item(), rel=1e-9)
    stacked = torch.stack([matrix, 2 * matrix])
    torch.testing.assert_close(effective_rank(spectrum(stacked)), effective_rank(found).expand(2))
    torch.testing.assert_close(participation_ratio(spectrum(stacked)), participation_ratio(found).expand(2))


@pytest.mark.parametrize("rank", [1, 3])
def test_equal_directions_are_counted(rank: int) -> None:
    """Also where the matrix has more rows and columns than directions."""
    left, right = (torch.linalg.qr(draw(9, rank, seed=seed)).Q for seed in (1, 2))
    found = spectrum(left @ right.mT)
    assert effective_rank(found).item() == pytest.approx(rank, rel=1e-9)
    assert participation_ratio(found).item() == pytest.approx(rank, rel=1e-9)


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    values = draw(3, 8).square()
    by_pairs = (values[:, :, None] - values[:, None]).abs().mean(dim=(1, 2)) / (2 * values.mean(dim=1))
    torch.testing.assert_close(gini(values), by_pairs, rtol=1e-9, atol=0)
    assert gini(torch.ones(5)) == 0
    assert gini(torch.tensor([0.0, 0.0, 0.0, 2.0])).item() == pytest.approx(1 - 1 / 4)


@pytest.mark.parametrize("name", ["square", "silu", "relu"])
def test_the_tangent_kernel_is_that_of_autograd(name: str) -> None:
    sigma = find_activation(name)
    m, d, K, C = 6, 5, 4, 3
    X, W, V = draw(m, d), draw(d, K, seed=1).requires_grad_(), draw(K, C, seed=2).requires_grad_()
    outputs = sigma(X @ W) @ V
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(outputs[i, c], (W, V), retain_graph=True)])
        for i in range(m)
        for c in range(C)
    ]
    J = torch.stack(gradients).view(m, C, -1)
    dense = torch.einsum("icp,jcp->ij", J, J)
    drawn = torch.tensor([4, 0, 1])
    with torch.no_grad():
        z = X @ W
        arguments = sigma(z), sigma.derivative(z), V
        found = tangent_kernel(*arguments, X, drawn)
        torch.testing.assert_close(found.columns, dense[:, drawn], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.sums, dense.sum(dim=1), rtol=1e-9, atol=1e-12)
        P = torch.eye(m, dtype=torch.float64) - 1 / m
        torch.testing.assert_close(found.centered(), (P @ dense @ P)[:, drawn], rtol=1e-9, atol=1e-12)
        stacked = tangent_kernel(*(torch.stack([t, 2 * t]) for t in arguments), X, drawn)
        torch.testing.assert_close(stacked.centered()[0], found.centered())


def test_alignment_is_the_cosine_of_centred_kernels() -> None:
    F, labels = draw(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
    P = torch.eye(8, dtype=torch.float64) - 1 / 8
    Y = torch.nn.functional.one_hot(labels).double()
    every, counts = torch.arange(8), Y.sum(dim=0)
    kernel = F @ F.mT
    left, right = P @ kernel @ P, P @ Y @ Y.mT @ P
    cosine = (left * right).sum() / left.norm() / right.norm()
    whole = KernelColumns(every, kernel, kernel.sum(dim=1))
    assert kernel_alignment(whole, labels, counts).item() == pytest.approx(cosine.item(), rel=1e-9)
    assert kernel_alignment(task_kernel(labels, counts, every), labels, counts).item() == pytest.approx(1, rel=1e-12)
    # One column at a time: the inner product and the square of the norm are the means of their estimates.
    inner, squares = 0.0, 0.0
    for column in every.split(1):
        part = KernelColumns(column, kernel[:, column], kernel.sum(dim=1))
        size = 8 * part.centered().square().sum().item()
        inner += kernel_alignment(part, labels, counts).item() * (size**0.5) / 8
        squares += size / 8
    assert inner / squares**0.5 == pytest.approx(cosine.item(), rel=1e-9)
