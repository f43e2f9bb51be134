"""Formulas of deeper networks on matrices that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from li2_lightning.theory.depth import (
    LayerSums,
    below_random_layer,
    isometry,
    label_share,
    layer_structure,
    target_gram,
)
from li2_lightning.theory.lazy import center
from li2_lightning.verification.findings import draw
from tests.conftest import cosine

n, C, K = 30, 5, 8


LABELS = torch.arange(n) % (C - 1)  # the last class has no sample
Y = functional.one_hot(LABELS, C).double()
COUNTS = Y.sum(dim=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_norm_and_cosines_need_no_matrix_with_a_side_for_the_samples(dtype: torch.dtype) -> None:
    F, G, d = draw(n, K, dtype=dtype), draw(n, K, seed=1, dtype=dtype), draw(n, seed=2)
    R, T = center(draw(n, C, seed=3)).to(dtype), center(Y).to(dtype)
    D = d[:, None].to(dtype)
    sums = LayerSums(
        target_features=T.mT @ F,
        target_gradient=T.mT @ G,
        residual_features=R.mT @ F,
        residual_gradient=R.mT @ G,
        gated_features=T.mT @ (D * F),
        gated_gradient=T.mT @ (D * G),
        gate_squares=Y.mT @ d.square(),
        gradient_norm=G.norm(),
    )
    found = layer_structure(sums, COUNTS, (R.mT @ R).real)
    assert float(found.independence) == pytest.approx(cosine(G, T @ T.mT @ F), rel=1e-12)
    assert float(found.coupling) == pytest.approx(cosine(G, R @ R.mT @ F), rel=1e-12)
    assert float(found.prediction) == pytest.approx(cosine(G, D * (T @ T.mT @ (D * F))), rel=1e-12)
    torch.testing.assert_close(target_gram(COUNTS, Y.mT @ d.square()).to(dtype), (D * T).mT @ (D * T))


def test_the_share_between_classes_is_that_of_the_class_means() -> None:
    F = draw(n, K)
    F[:, 0], F[:, 1] = LABELS.double() ** 2, 3.0
    share = label_share(center(Y).mT @ F, center(F).square().sum(dim=0), COUNTS)
    means = torch.stack([F[c == LABELS].mean(dim=0) for c in LABELS])
    expected = center(means).square().sum(dim=0) / center(F).square().sum(dim=0)
    assert float(share[0]) == pytest.approx(1)
    assert share[1].isnan()
    torch.testing.assert_close(share[2:], expected[2:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_isometry_is_one_for_multiples_of_orthogonal_matrices_only(dtype: torch.dtype) -> None:
    Q = torch.linalg.qr(draw(K, K, dtype=dtype)).Q
    assert float(isometry(3 * Q)) == pytest.approx(1)
    assert float(isometry(torch.ones(K, K, dtype=dtype))) == pytest.approx(1 / math.sqrt(K))
    assert float(isometry(draw(400, 400, dtype=dtype))) == pytest.approx(math.sqrt(0.5), abs=0.01)


def test_what_reaches_a_layer_below_random_relu_nodes() -> None:
    """The mean over many drawn nodes; on the two-sample case by hand."""
    F, T = draw(6, 3), draw(6, 6, seed=1)
    T = T @ T.mT
    A = draw(3, 400_000, seed=2)
    z = F @ A
    G = ((T @ z.relu()) * (z > 0)) @ A.mT / A.shape[1]
    torch.testing.assert_close(below_random_layer(T, F), G, rtol=0.02, atol=0.02 * float(G.abs().max()))
    # Orthogonal samples of equal length: both gates are open for a quarter of the nodes; sin θ = 1.
    two, kernel = torch.eye(2).double(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    expected = torch.tensor([[1 / (2 * math.pi), 0.25], [0.25, 1 / (2 * math.pi)]]).double()
    torch.testing.assert_close(below_random_layer(kernel, two), expected)
