"""The structure of G_F from small matrices, against G_F and its two forms written out as n×K matrices."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from li2_lightning.theory.interaction import GradientGrams, GradientStructure, gradient_structure, node_coupling
from li2_lightning.verification.findings import draw
from tests.conftest import cosine

DTYPES = [torch.float64, torch.complex128]
n, K, C = 14, 9, 5


def centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """F̃, Ỹ, V; the two sides are unrelated, so that every cosine lies well inside (−1, 1)."""
    labels = torch.randint(C, (n,), generator=torch.Generator().manual_seed(3))
    return (
        centered(draw(n, K, dtype=dtype)),
        centered(torch.eye(C, dtype=torch.float64)[labels]),
        draw(K, C, dtype=dtype),
    )


def structure(F: Tensor, Y: Tensor, V: Tensor, R: Tensor) -> GradientStructure:
    to = F.dtype
    # Ỹ has y_ic − n_c/n: the classes are where it is largest.
    counts = torch.bincount(Y.argmax(dim=1), minlength=C).to(Y.dtype)
    grams = GradientGrams(R.mT @ R, counts, R.mT @ Y)
    return gradient_structure(Y.mT.to(to) @ F, F.mH @ R.to(to), V, grams)


def real(values: Tensor) -> Tensor:
    return torch.view_as_real(values).flatten() if values.is_complex() else values.flatten()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_scalar_is_that_of_the_dense_matrices(dtype: torch.dtype) -> None:
    F, Y, V = problem(dtype)
    outputs = (F @ V).real if dtype.is_complex else F @ V
    R = centered(Y - 0.1 * outputs)
    G = R.to(dtype) @ V.mH
    driving = F.mH @ R.to(dtype)
    expected = {
        "norm": real(G).norm().item(),
        "independence": cosine(G, (Y @ Y.mT).to(dtype) @ F),
        "coupling": cosine(G, (R @ R.mT).to(dtype) @ F),
        "residual_alignment": cosine(R, Y),
        "readout_alignment": cosine(V, F.mH @ Y.to(dtype)),
        "readout_equilibrium": cosine(V, driving),
        "effective_ridge": (real(driving).norm() / real(V).norm()).item(),
    }
    actual = {name: value.item() for name, value in asdict(structure(F, Y, V, R)).items()}
    assert actual == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert all(abs(value) < 0.999 for name, value in expected.items() if name not in ("norm", "effective_ridge"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ridge", [1e-2, 1.0, 1e2])
def test_at_a_ridge_readout_the_equilibrium_holds_and_shows_its_strength(ridge: float, dtype: torch.dtype) -> None:
    """V at the minimum of ½‖Ỹ − Re F̃V‖² + (η/2)‖V‖²: F̃ᴴR = ηV, so both cosines are 1 and η̂ = η.

    The minimum is found on real numbers, [Re F̃, −Im F̃] against [Re V; Im V]: the loss sees Re(F̃V).
    """
    F, Y, _ = problem(dtype)
    stacked = torch.cat([F.real, -F.imag], dim=1) if dtype.is_complex else F
    width = stacked.shape[1]
    V = torch.linalg.solve(stacked.mT @ stacked + ridge * torch.eye(width, dtype=torch.float64), stacked.mT @ Y)
    R = Y - stacked @ V
    found = structure(F, Y, torch.complex(V[:K], V[K:]) if dtype.is_complex else V, R)
    assert found.readout_equilibrium.item() == pytest.approx(1, abs=1e-10)
    assert found.coupling.item() == pytest.approx(1, abs=1e-10)
    assert found.effective_ridge.item() == pytest.approx(ridge, rel=1e-9)


def test_the_forms_part_where_the_features_are_not_isotropic_and_meet_where_they_are() -> None:
    """At the ridge readout of features with F̃F̃ᵀ = aP₁⊥, B and P_η are multiples of projections: all cosines are 1."""
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), draw(n, n - 1)], dim=1)).Q[:, 1:]
    Y = problem(torch.float64)[1]
    for F, same in ((2 * basis, True), (basis * torch.logspace(0, 1, n - 1, dtype=torch.float64), False)):
        V = torch.linalg.solve(F.mT @ F + 0.5 * torch.eye(n - 1, dtype=torch.float64), F.mT @ Y)
        found = structure(F, Y, V, Y - F @ V)
        for value in (found.independence, found.residual_alignment, found.readout_alignment):
            assert (value.item() == pytest.approx(1, abs=1e-10)) is same
        assert found.coupling.item() == pytest.approx(1, abs=1e-10)


def test_a_side_that_vanishes_leaves_its_cosines_undefined_and_the_norm_zero() -> None:
    F, Y, V = problem(torch.float64)
    zero_readout, solved = structure(F, Y, 0 * V, Y), structure(F, Y, V, 0 * Y)
    undefined = {name for name, value in asdict(zero_readout).items() if value.isnan()}
    assert undefined == {"independence", "coupling", "readout_alignment", "readout_equilibrium", "effective_ridge"}
    undefined = {name for name, value in asdict(solved).items() if value.isnan()}
    assert undefined == {"independence", "coupling", "residual_alignment", "readout_equilibrium"}
    assert zero_readout.norm == solved.norm == solved.effective_ridge == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_node_coupling_is_the_median_over_columns_of_g_f(dtype: torch.dtype) -> None:
    V, R = draw(K, C, dtype=dtype), draw(n, C, seed=1)
    pairs = torch.tensor([[0, 1], [2, 7], [8, 3], [4, 0], [5, 6]])
    G = R.to(dtype) @ V.mH
    cosines = [((G[:, j].conj() @ G[:, k]).abs() / G[:, j].norm() / G[:, k].norm()).item() for j, k in pairs.tolist()]
    assert node_coupling(V, R.mT @ R, pairs).item() == pytest.approx(sorted(cosines)[2], rel=1e-10)
    # A dead node has no direction: its pairs do not count.
    V[0] = 0
    assert node_coupling(V, R.mT @ R, pairs).item() == pytest.approx(sorted(cosines[1:3] + cosines[4:])[1], rel=1e-10)
