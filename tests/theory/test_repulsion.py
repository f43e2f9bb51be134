"""Repulsion: against the whole inverse on both sides of n = K, and the pairs against all cosines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from li2_lightning.theory.interaction import BLOCK, interaction_block, most_similar_pairs, repulsion
from li2_lightning.theory.lazy import center

DTYPES = [torch.float64, torch.complex128]
SIZES = [(40, 12), (12, 12), (13, 40)]


def draw(n: int, K: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return center(torch.randn(n, K, dtype=dtype, generator=torch.Generator().manual_seed(seed)).square())


def real(values: Tensor) -> Tensor:
    return values.real if values.is_complex() else values


def inverse(F: Tensor, ridge: float) -> Tensor:
    return torch.linalg.inv(F.mH @ F + ridge * torch.eye(F.shape[1], dtype=F.dtype))


def all_pairs(F: Tensor) -> list[tuple[float, int, int]]:
    """(cosine, j, l) of all pairs with a positive one, most similar first."""
    directions = F / torch.linalg.vector_norm(F, dim=0)
    cosines = real(directions.mH @ directions)
    K = F.shape[1]
    found = [(float(cosines[j, k]), j, k) for j in range(K) for k in range(j + 1, K) if cosines[j, k] > 0]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
@pytest.mark.parametrize("ridge", [1e-3, 0.5, 100.0])
def test_the_block_is_that_of_the_whole_inverse(n: int, K: int, ridge: float, dtype: torch.dtype) -> None:
    F, nodes = draw(n, K, dtype), torch.tensor([7, 0, 3])
    expected = inverse(F, ridge)[nodes][:, nodes]
    block = interaction_block(F, ridge, nodes)
    assert torch.allclose(block, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
def test_share_and_strength_are_those_of_the_whole_inverse(n: int, K: int, dtype: torch.dtype) -> None:
    F, ridge = draw(n, K, dtype), 3.0
    pairs = most_similar_pairs(F, 10)
    B = inverse(F, ridge)
    entries = [float(real(B[j, k])) for j, k in pairs.tolist()]
    sizes = [math.sqrt(float(real(B[j, j])) * float(real(B[k, k]))) for j, k in pairs.tolist()]
    share, strength = repulsion(F, torch.tensor(ridge), pairs)
    assert float(share) == pytest.approx(sum(entry < 0 for entry in entries) / 10, abs=1e-12)
    expected = -sum(entry / size for entry, size in zip(entries, sizes, strict=True)) / 10
    assert float(strength) == pytest.approx(expected, abs=1e-9)


def test_twins_repel_and_nodes_without_overlap_do_not() -> None:
    """For two equal nodes of norm a, B = (1/η)(I − [[a², a²], [a², a²]]/(2a²+η)): the strength is a²/(a²+η)."""
    F = torch.zeros(9, 3, dtype=torch.float64)
    F[:4, :2] = center(torch.tensor([[1.0], [-1.0], [2.0], [-2.0]], dtype=torch.float64))
    F[5:7, 2] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    share, strength = repulsion(F, 0.5, torch.tensor([[0, 1]]))
    assert float(share) == 1
    assert float(strength) == pytest.approx(10 / 10.5, abs=1e-12)
    share, strength = repulsion(F, 0.5, torch.tensor([[0, 2]]))
    assert float(share) == 0
    assert float(strength) == pytest.approx(0, abs=1e-12)


def test_a_node_that_others_explain_away_attracts() -> None:
    """Alike only through a common part that other nodes carry: the negative control of the sign."""
    common, rest = torch.eye(4, dtype=torch.float64)[0], torch.eye(4, dtype=torch.float64)[1]
    F = torch.stack([common + 0.5 * rest, common - 0.5 * rest, common], dim=1)
    assert float(F[:, 0] @ F[:, 1]) > 0
    share, strength = repulsion(F, 1e-2, torch.tensor([[0, 1]]))
    assert float(share) == 0
    assert float(strength) < -0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 7, 50])
def test_the_pairs_are_the_most_similar_of_all(count: int, dtype: torch.dtype) -> None:
    F = draw(30, 25, dtype)
    expected = [(j, k) for _, j, k in all_pairs(F)[:count]]
    assert [tuple(pair) for pair in most_similar_pairs(F, count).tolist()] == expected


def test_the_pairs_are_found_across_blocks() -> None:
    K = 2 * BLOCK + 40
    F = draw(64, K)
    near = [(3, 2 * BLOCK + 5), (BLOCK - 1, BLOCK), (BLOCK + 2, K - 1), (2 * BLOCK + 1, 2 * BLOCK + 2), (0, 1)]
    for rank, (j, k) in enumerate(near):
        F[:, k] = 2 * F[:, j] + 0.02 * (rank + 1) * F[:, j].norm() * F[:, 100] / F[:, 100].norm()
    assert [tuple(pair) for pair in most_similar_pairs(F, 5).tolist()] == near


def test_opposite_and_constant_nodes_make_no_pair() -> None:
    F = draw(20, 2)[:, [0, 0, 0, 1]] * torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    assert most_similar_pairs(F, 200).shape == (0, 2)
    assert all(math.isnan(value) for value in repulsion(F, 1.0, most_similar_pairs(F, 200)))


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan])
@pytest.mark.parametrize(("n", "K"), SIZES)
def test_without_a_positive_ridge_both_are_undefined(n: int, K: int, ridge: float) -> None:
    F = draw(n, K)
    assert all(math.isnan(value) for value in repulsion(F, ridge, most_similar_pairs(F, 10)))
