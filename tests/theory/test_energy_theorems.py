"""Theorem 2, as corrected: where ascent ends on every group of a table, real and complex, and what is no maximum."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from li2_lightning import groups
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import character_table, irreducible_subspaces, isotypic_blocks, matrix_irreps
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.theory.energy import (
    Ascent,
    ascend,
    block_shares,
    classify_limits,
    energy_gradient,
    energy_of_weights,
    flat_directions,
    group_energy,
    group_energy_gradient,
    maximizer,
    orbit_rank,
    predicted_maxima,
    sphere_curvatures,
)
from li2_lightning.verification.findings import draw
from li2_lightning.verification.groups import affine_group, special_linear_group

# Block: E* and the share of Gaussian starts that end there, by label of `isotypic_blocks`; where two shares stand,
# those of several blocks of one kind lie between them. Z7's blocks are alike, so each gets a third. A5: 9,000 starts.
TABLE: dict[str, tuple[FiniteGroup, dict[str, tuple[float, float, float]]]] = {
    "Z7": (groups.cyclic(7), {"C1": (1.75, 0.333, 0.333)}),
    "Z8": (groups.cyclic(8), {"R1": (4, 0.198, 0.198), "C1": (2, 0.262, 0.275)}),
    "Z23": (groups.cyclic(23), {"C1": (5.75, 0.077, 0.105)}),
    "Z2×Z4": (groups.product("2x4"), {"R1": (4, 0.176, 0.183), "C1": (2, 0.230, 0.230)}),
    "S3": (groups.symmetric(3), {"R1": (3, 0.235, 0.235), "R2": (1.5, 0.765, 0.765)}),
    "D5": (groups.dihedral(5), {"R1": (5, 0.140, 0.140), "R2": (2.5, 0.430, 0.430)}),
    "Q8": (groups.quaternion(), {"R1": (4, 0.205, 0.217), "H2": (1, 0.369, 0.369)}),
    "A4": (groups.alternating(4), {"C1": (3, 0.178, 0.178), "R3": (2, 0.823, 0.823)}),
    "S4": (
        groups.symmetric(4),
        {"R1": (12, 0.079, 0.079), "R2": (6, 0.205, 0.205), "R3": (4, 0.353, 0.364)},
    ),
    "F21": (affine_group(7, (1, 2, 4)), {"C1": (5.25, 0.137, 0.137), "C3": (1.75, 0.863, 0.863)}),
    "Dic3": (
        groups.quaternion(12),
        {"R1": (6, 0.149, 0.149), "C1": (3, 0.177, 0.177), "R2": (3, 0.465, 0.465), "H2": (1.5, 0.209, 0.209)},
    ),
    "SL(2,3)": (
        special_linear_group(3),
        {"C1": (6, 0.108, 0.108), "C2": (3, 0.299, 0.299), "H2": (3, 0.086, 0.086), "R3": (4, 0.508, 0.508)},
    ),
    "A5": (
        groups.alternating(5),
        {"R3": (10, 0.180, 0.197), "R4": (7.5, 0.261, 0.261), "R5": (6, 0.362, 0.362)},
    ),
}
SMALL = [name for name in TABLE if TABLE[name][0].order <= 12]


def climb(group: FiniteGroup, starts: int, dtype: torch.dtype = torch.float64) -> Ascent:
    """In portions that stay in cache."""
    parts = [
        ascend(start, lambda w: group_energy_gradient(w, group))
        for start in draw(2 * group.order, starts, dtype=dtype).split(128, dim=1)
    ]
    weights = torch.cat([part.weights for part in parts], dim=1)
    others = (torch.cat([getattr(part, name) for part in parts]) for name in ("energies", "residuals", "steps"))
    return Ascent(weights, *others)


def check(name: str, starts: int, margin: float) -> None:
    group, expected = TABLE[name]
    limits = classify_limits(climb(group, starts).weights, group)
    assert limits.maximizers(1e-12).all()
    blocks = isotypic_blocks(group)[1:]
    assert {block.type for block in blocks} == set(expected)
    for number, (block, predicted) in enumerate(zip(blocks, predicted_maxima(group).tolist(), strict=True)):
        value, low, high = expected[block.type]
        assert predicted == pytest.approx(value, rel=1e-12)
        share = (limits.block == number).double().mean().item()
        assert low - margin <= share <= high + margin, (block.label, share)


@pytest.mark.parametrize("name", SMALL)
def test_every_start_ends_at_a_predicted_maximum(name: str) -> None:
    """Value to 1e-12, one block, one irreducible subspace; shares within three standard errors of 400 starts."""
    check(name, 400, 0.075)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_the_shares_of_the_starts(name: str) -> None:
    """±.03 with 3,000 starts, whose standard error is at most .009."""
    check(name, 3000, 0.03)


@pytest.mark.parametrize("name", ["Z7", "S3", "Q8", "SL(2,3)"])
def test_complex_weights_reach_m_over_twice_the_complex_dimension(name: str) -> None:
    """Also for pairs and quaternionic irreps, where real weights reach half of it."""
    group = TABLE[name][0]
    limits = classify_limits(climb(group, 100, dtype=torch.complex128).weights, group)
    assert limits.maximizers(1e-12).all()
    assert limits.block.unique().tolist() == list(range(len(isotypic_blocks(group)) - 1))


@pytest.mark.parametrize("name", ["Z8", "S3", "Q8", "A4", "F21", "SL(2,3)"])
def test_constructed_maximizers_have_the_predicted_value_and_no_slope(name: str) -> None:
    group = TABLE[name][0]
    for subspaces, value in zip(irreducible_subspaces(group)[1:], predicted_maxima(group), strict=True):
        B = torch.tensor(subspaces[-1])
        w = maximizer(B, draw(B.shape[1], 4), draw(B.shape[1], 4, seed=1), group)
        E, gradient = group_energy_gradient(w, group)
        assert (E / value - 1).abs().max() < 1e-12
        assert (gradient - 4 * E * w).norm() < 1e-10 * E.norm()
        assert classify_limits(w, group).maximizers().all()
    for irrep, rho in zip(character_table(group)[1:], matrix_irreps(group)[1:], strict=True):
        d = irrep.dimension
        B = (d / group.order) ** 0.5 * torch.tensor(rho[:, :, 0]).conj()
        w = maximizer(B, draw(d, 4, dtype=B.dtype), draw(d, 4, seed=1, dtype=B.dtype), group)
        assert (group_energy(w, group) * 2 * d / group.order - 1).abs().max() < 1e-12
        assert classify_limits(w, group).maximizers().all()
        without = torch.cat([w[: group.order], w[group.order :].conj()])
        if irrep.kind != "R":
            assert group_energy(without, group).max() < 1e-12


@pytest.mark.parametrize("name", SMALL)
def test_maxima_are_flat_along_their_family_and_curve_downwards_elsewhere(name: str) -> None:
    """Corollary 1, with the number of flat directions of every kind of irrep; a sign has none."""
    group = TABLE[name][0]
    numbers = flat_directions(group)
    for subspaces, value, number in zip(
        irreducible_subspaces(group)[1:], predicted_maxima(group), numbers, strict=True
    ):
        B = torch.tensor(subspaces[0])
        w = maximizer(B, draw(B.shape[1], 1), draw(B.shape[1], 1, seed=1), group)[:, 0]
        curvatures = sphere_curvatures(w, group) / value
        assert len(curvatures) == 2 * group.order - 1
        flat = curvatures.abs() < 1e-9
        assert flat.sum() == number
        # Along the norm of one half against the other −8, out of the block and out of the family −4.
        assert set(curvatures[~flat].round(decimals=9).tolist()) == {-8.0, -4.0}
        assert (int(number) == 0) == (B.shape[1] == 1)


def test_the_curvatures_are_those_of_the_energy_along_great_circles() -> None:
    group = groups.symmetric(3)
    w = climb(group, 1).weights
    other = draw(12, 1)
    other = (other - w * (w * other).sum()) / (other - w * (w * other).sum()).norm()

    def at(angle: float) -> Tensor:
        return group_energy(w * torch.cos(torch.tensor(angle)) + other * torch.sin(torch.tensor(angle)), group)[0]

    second = (at(1e-3) + at(-1e-3) - 2 * at(0.0)) / 1e-6
    curvatures = sphere_curvatures(w[:, 0], group)
    assert curvatures[0] - 1e-3 < second < curvatures[-1] + 1e-3


@pytest.mark.parametrize("name", ["S3", "A4", "S4"])
def test_rank_r_points_of_a_block_are_saddles_with_the_rth_part_of_the_energy(name: str) -> None:
    """Two orthogonal irreducible subspaces of one block: pure, stationary, and yet ascent leaves for E*."""
    group = TABLE[name][0]
    rho = torch.tensor(matrix_irreps(group)[-1].real)  # of kind R; B₀ and B₁ have the same matrices for L_g
    d = rho.shape[1]
    bases, x = (d / group.order) ** 0.5 * rho, torch.eye(d, 2, dtype=torch.float64)
    w = sum(maximizer(bases[:, :, i], x, x, group)[:, i : i + 1] for i in (0, 1)) / 2**0.5
    limits = classify_limits(w, group)
    assert limits.purity.item() == pytest.approx(1, abs=1e-12)
    assert limits.rank.item() == 2
    assert not limits.maximizers().any()
    E, gradient = group_energy_gradient(w, group)
    best = predicted_maxima(group)[-1]
    assert (E / best).item() == pytest.approx(0.5, rel=1e-12)
    assert (gradient - 4 * E * w).norm() < 1e-10 * E.norm()
    curvatures = sphere_curvatures(w[:, 0], group) / E
    assert curvatures.max() > 1, "a saddle curves upwards"
    nudged = ascend(w + 1e-4 * draw(2 * group.order, 1), lambda v: group_energy_gradient(v, group))
    assert classify_limits(nudged.weights, group).maximizers(1e-12).all()


@pytest.mark.parametrize("name", ["S3", "Q8", "A4"])
def test_no_limit_has_the_tied_form_of_the_source_where_the_irrep_is_larger(name: str) -> None:
    """[u; ±Pu] is a maximum, but one of many: no Gaussian start ends there unless d_R = 1."""
    group = TABLE[name][0]
    ascent = climb(group, 200)
    u, v = ascent.weights.chunk(2)
    z = v[torch.tensor(group.inverses)]
    tied = torch.minimum((u - z).norm(dim=0), (u + z).norm(dim=0)) < 1e-6
    dimensions = torch.tensor([block.real_dimension for block in isotypic_blocks(group)[1:]])
    reached = dimensions[classify_limits(ascent.weights, group).block]
    assert not tied[reached > 1].any()
    assert tied[reached == 1].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_energy_of_a_group_is_that_of_all_its_pairs(dtype: torch.dtype) -> None:
    """Against the dense E of Theorem 1 and against autograd."""
    group = groups.dihedral(4)
    M = group.order
    eye = torch.eye(M, dtype=torch.float64)
    X = torch.cat([eye.repeat_interleave(M, 0), eye.repeat(M, 1)], dim=1)
    Y = eye[torch.tensor(group.table).flatten()]
    w = draw(2 * M, 5, dtype=dtype).requires_grad_()
    dense = energy_of_weights(w, X, Y - Y.mean(dim=0), ACTIVATIONS["square"])
    E, gradient = group_energy_gradient(w.detach(), group)
    torch.testing.assert_close(E, dense.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(E, group_energy(w.detach(), group), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(dense.sum(), w)[0], rtol=1e-10, atol=1e-10)
    if dtype == torch.float64:
        slow = energy_gradient(w.detach(), X, Y - Y.mean(dim=0), ACTIVATIONS["square"])
        torch.testing.assert_close(gradient, slow, rtol=1e-10, atol=1e-10)


def test_ascent_never_descends_and_says_how_long_it_took() -> None:
    group = groups.symmetric(3)
    start = draw(12, 50)
    energies = [group_energy(start / start.norm(dim=0), group)]
    for steps in (1, 2, 5, 20, 1000):
        found = ascend(start, lambda w: group_energy_gradient(w, group), max_steps=steps)
        energies.append(found.energies)
        assert found.steps.max() <= steps
        torch.testing.assert_close(found.weights.norm(dim=0), torch.ones(50, dtype=torch.float64))
    for before, after in pairwise(energies):
        assert (after >= before - 1e-12).all()
    assert (found.residuals < 1e-10).all()
    assert found.steps.max() <= 140


def test_single_precision_comes_as_near_as_it_can() -> None:
    group = groups.symmetric(3)
    found = ascend(draw(12, 50).float(), lambda w: group_energy_gradient(w, group), tolerance=1e-6)
    assert found.weights.dtype == torch.float32
    assert (found.energies.double()[:, None] / predicted_maxima(group) - 1).abs().min(dim=1).values.max() < 4e-6


def test_shares_sum_to_one_without_a_constant_part() -> None:
    group = special_linear_group(3)
    halves = [half - half.mean(dim=0) for half in draw(48, 3).chunk(2)]
    shares = block_shares(torch.cat(halves), group)
    assert shares.shape == (len(isotypic_blocks(group)) - 1, 3)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(3, dtype=torch.float64))
    with_constant = block_shares(torch.cat(halves) + 1, group)
    assert (with_constant.sum(dim=0) < 0.9).all()


def test_the_orbit_of_a_random_function_spans_everything() -> None:
    assert orbit_rank(draw(16, 2), groups.quaternion()).tolist() == [8, 8]
