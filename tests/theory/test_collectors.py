"""Theorem 8: collection times by quadrature, closed forms, and draws one by one; the shrink of the polar factor."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from li2_lightning import groups
from li2_lightning.theory.energy import ascend, group_energy_gradient
from li2_lightning.theory.muon import (
    collect_in_turn,
    collection_probabilities,
    collection_times,
    expected_coverage,
    fitted_factor,
    independent_collection_time,
    muon_collection_time,
    orthogonal_maxima,
    polar_factor,
    shrink_factor,
    simulate_blocking,
    simulate_collection,
)

P = collection_probabilities(torch.linspace(1, 2, 8, dtype=torch.float64), 1)


@pytest.mark.parametrize("count", [1, 2, 11, 500])
def test_equal_probabilities_take_harmonic_numbers(count: int) -> None:
    expected = count * sum(1 / k for k in range(1, count + 1))
    p = torch.full((count,), 1 / count, dtype=torch.float64)
    assert independent_collection_time(p).item() == pytest.approx(expected, rel=1e-12)


def test_published_values() -> None:
    equal = torch.full((11,), 1 / 11, dtype=torch.float64)
    assert independent_collection_time(equal).item() == pytest.approx(33.2187, abs=5e-5)
    assert independent_collection_time(P).item() == pytest.approx(23.7393, abs=5e-5)
    assert muon_collection_time(P, 0.5).item() == pytest.approx(15.8697, abs=5e-5)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_quadrature_is_inclusion_and_exclusion(power: float) -> None:
    p = collection_probabilities(torch.linspace(1, 2, 8, dtype=torch.float64), power)
    sums = [
        (-1) ** (size + 1) / p[list(subset)].sum().item()
        for size in range(1, 9)
        for subset in combinations(range(8), size)
    ]
    assert independent_collection_time(p).item() == pytest.approx(sum(sums), rel=1e-10)


def test_a_rare_maximum_decides() -> None:
    p = torch.tensor([1e-6, 1 - 1e-6], dtype=torch.float64)
    expected = 1 / p[0] + 1 / p[1] - 1
    assert independent_collection_time(p).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("shrink", "power"), [(1.0, 1.0), (0.5, 1.0), (0.5, 2.0), (0.1, 1.0)])
def test_draws_one_by_one_take_as_long_on_average(shrink: float, power: float) -> None:
    """Within four standard errors of 20,000 trials."""
    times = simulate_collection(P, shrink**power, 20000, torch.Generator().manual_seed(0)).double()
    error = (times.mean() - muon_collection_time(P, shrink, power)).abs()
    assert error < 4 * times.std() / 20000**0.5
    assert times.min() >= 8


def test_with_all_of_the_pull_gone_every_node_finds_a_new_one() -> None:
    assert muon_collection_time(P, 0.0).item() == 8
    assert (simulate_collection(P, 1e-30, 100, torch.Generator().manual_seed(0)) == 8).all()


def test_a_sequence_is_cut_into_complete_collections() -> None:
    """0 1 1 2 | 2 1 0 | 0 0: two are complete, the rest is not counted."""
    assert collection_times(torch.tensor([0, 1, 1, 2, 2, 1, 0, 0, 0]), 3).tolist() == [4, 3]
    assert collection_times(torch.tensor([0, 1]), 3).tolist() == []


def test_collections_of_one_long_sequence_take_as_long_on_average() -> None:
    """Within four standard errors of T₀."""
    draws = torch.multinomial(P, 100_000, replacement=True, generator=torch.Generator().manual_seed(0))
    times = collection_times(draws, len(P)).double()
    error = (times.mean() - independent_collection_time(P)).abs()
    assert error < 4 * times.std() / len(times) ** 0.5
    assert times.sum() <= 100_000


@pytest.mark.parametrize("nodes", [1, 4, 9])
@pytest.mark.parametrize(("new", "found", "pull"), [(1.0, 1.0, 0.7), (0.3, 2.0, 1.5), (2.0, 0.1, -0.4)])
def test_the_polar_factor_shrinks_the_pull_of_what_others_hold(
    new: float, found: float, pull: float, nodes: int
) -> None:
    """Against a singular value decomposition of m found columns and a new one, in a random frame."""
    frame = torch.linalg.qr(torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    found_columns = found * frame[:, :1].expand(-1, nodes)
    gradient = torch.cat([found_columns, pull * frame[:, :1] + new * frame[:, 1:]], dim=1)
    U, D, Vh = torch.linalg.svd(gradient, full_matrices=False)
    column = (U[:, :2] @ Vh[:2])[:, -1]  # of rank 2: the rest of the factor is arbitrary
    before, after = pull / new, (frame[:, 0] @ column) / (frame[:, 1] @ column)
    assert (D[2:] < 1e-12).all()
    assert after.item() / before == pytest.approx(shrink_factor(new, found, nodes), rel=1e-10)


def test_equal_norms_and_one_node_give_a_half() -> None:
    assert shrink_factor(2.0, 2.0, 1) == 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_lemma_2(dtype: torch.dtype) -> None:
    """⟨UVᴴ, G⟩ = tr D ≥ 0, and the factor has orthonormal columns."""
    G = torch.randn(3, 9, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    factor = polar_factor(G)
    inner = (factor.conj() * G).sum(dim=(-2, -1))
    torch.testing.assert_close(inner.real, torch.linalg.svdvals(G).sum(dim=-1))
    torch.testing.assert_close(factor.mH @ factor, torch.eye(5, dtype=dtype).expand(3, 5, 5))


@pytest.mark.parametrize(("maxima", "factor"), [(11, 1.0), (35, 1.0), (11, 0.5), (11, 0.0)])
def test_expected_coverage_is_what_draws_one_by_one_find(maxima: int, factor: float) -> None:
    expected = expected_coverage(maxima, 60, factor)
    generator = torch.Generator().manual_seed(0)
    trials = 4000
    found = torch.zeros(trials, maxima, dtype=torch.bool)
    for nodes in range(61):
        if nodes:
            weights = torch.where(found, factor, 1.0) + 1e-30
            found[torch.arange(trials), torch.multinomial(weights, 1, generator=generator)[:, 0]] = True
        spread = found.sum(dim=1).double().std().item() / trials**0.5
        assert expected[nodes].item() == pytest.approx(found.sum(dim=1).double().mean().item(), abs=5 * spread + 1e-9)


def test_expected_coverage_in_closed_form_and_its_waits() -> None:
    nodes = torch.arange(201, dtype=torch.float64)
    torch.testing.assert_close(expected_coverage(35, 200), 35 * (1 - (1 - 1 / 35) ** nodes))
    torch.testing.assert_close(expected_coverage(35, 200, 0.0), nodes.clamp(max=35))
    # With one maximum to find, the share of chains that have not got there by K sums to the mean time.
    p = torch.full((2,), 0.5, dtype=torch.float64)
    missing = 2 - expected_coverage(2, 400, 0.5)[1:]
    assert 1 + missing.sum().item() == pytest.approx(muon_collection_time(p, 0.5).item(), rel=1e-12)


def test_a_fit_to_the_expected_coverage_finds_the_factor() -> None:
    factors = torch.tensor([0.0, 0.37, 1.0, 2.5], dtype=torch.float64)
    nodes = [12, 20, 32]
    expected = expected_coverage(15, 32, factors)
    torch.testing.assert_close(expected[1], expected_coverage(15, 32, 0.37))
    torch.testing.assert_close(fitted_factor(15, nodes, expected[:, nodes]), factors, atol=1e-4, rtol=0)
    assert fitted_factor(15, nodes, torch.tensor([20.0, 20, 20])).item() == 0
    assert fitted_factor(15, nodes, torch.zeros(3)).item() == 10


def test_blocks_of_one_maximum_take_a_node_each_and_those_of_many_are_independent() -> None:
    once = simulate_blocking(P, torch.ones(8), 50, torch.Generator().manual_seed(0))
    assert (once == 8).all()
    many = simulate_blocking(P, torch.full((8,), 1e12), 20000, torch.Generator().manual_seed(0)).double()
    assert (many.mean() - independent_collection_time(P)).abs() < 4 * many.std() / 20000**0.5


def test_two_blocks_of_two_maxima_take_seven_thirds_of_a_node() -> None:
    """The second draw finds the other block with probability 2/3, the third for certain."""
    times = simulate_blocking(torch.full((2,), 0.5), torch.full((2,), 2.0), 30000, torch.Generator().manual_seed(0))
    assert times.min() == 2
    assert times.max() == 3
    assert times.double().mean().item() == pytest.approx(7 / 3, abs=0.015)


def test_an_irrep_has_as_many_orthogonal_maxima_as_dimensions_in_both_halves() -> None:
    assert orthogonal_maxima(groups.product("2x2")).tolist() == [2, 2, 2]
    assert orthogonal_maxima(groups.cyclic(7)).tolist() == [4, 4, 4]
    assert orthogonal_maxima(groups.quaternion()).tolist() == [2, 2, 2, 8]
    for group in (groups.cyclic(8), groups.symmetric(4)):
        assert orthogonal_maxima(group).sum() == 2 * (group.order - 1)


@pytest.mark.parametrize("name", ["2x2", "7"])
def test_held_vectors_leave_a_limit_that_is_orthogonal_to_them_and_a_maximum(name: str) -> None:
    """A maximum of the energy among the vectors that are orthogonal to three held maxima."""
    group = groups.product(name)
    size = 2 * group.order
    held = ascend(torch.eye(size, 3, dtype=torch.float64) + 0.1, lambda w: group_energy_gradient(w, group)).weights
    held = torch.linalg.qr(held).Q
    start = torch.randn(size, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    limits = ascend(start, lambda w: group_energy_gradient(w, group), held=held.expand(20, -1, -1), max_steps=3000)
    assert (held.mT @ limits.weights).abs().max() < 1e-7
    E, gradient = group_energy_gradient(limits.weights, group)
    left = gradient - held @ (held.mT @ gradient)
    # Some limits converge more slowly than others, since their curvature is almost zero.
    assert ((left / (4 * E) - limits.weights).norm(dim=0) < 1e-4).all()
    free = ascend(start, lambda w: group_energy_gradient(w, group), held=held.expand(20, -1, -1)[:, :, :0])
    assert torch.equal(free.weights, ascend(start, lambda w: group_energy_gradient(w, group)).weights)


def test_orthogonal_gradients_collect_the_signs_of_z2_x_z2_within_five_nodes() -> None:
    """Three signs of two maxima each: after four nodes at least two are found, after five all."""
    times = collect_in_turn(groups.product("2x2"), 0.0, 60, torch.Generator().manual_seed(0))
    assert times.min() == 3
    assert times.max() <= 5
    drawn = simulate_blocking(torch.ones(3), torch.full((3,), 2.0), 20000, torch.Generator().manual_seed(0)).double()
    assert times.double().mean().item() == pytest.approx(drawn.mean().item(), rel=0.1)
    independent = collect_in_turn(groups.product("2x2"), 1.0, 60, torch.Generator().manual_seed(0)).double()
    assert independent.max() > 5
    assert independent.mean().item() == pytest.approx(5.5, abs=4 * independent.std().item() / 60**0.5)
