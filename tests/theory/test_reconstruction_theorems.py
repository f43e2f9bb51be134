"""Theorem 3, as corrected: which features solve the task, and which never do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from li2_lightning import groups
from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.theory.energy import block_shares
from li2_lightning.theory.reconstruction import (
    both_signs,
    cyclic_construction,
    matrix_entry_construction,
    pair_features,
    pair_targets,
    reconstruction_residual,
)
from li2_lightning.verification.findings import draw
from li2_lightning.verification.groups import affine_group


def residual(weights: Tensor, group: FiniteGroup) -> float:
    return reconstruction_residual(pair_features(weights), pair_targets(group)).item()


@pytest.mark.parametrize("complex_weights", [False, True])
@pytest.mark.parametrize("order", [3, 5, 7, 11, 15, 23])
def test_cyclic_groups_of_odd_order_need_2m_minus_2(order: int, complex_weights: bool) -> None:
    """And none of these units can go."""
    group, weights = groups.cyclic(order), cyclic_construction(order, complex_weights)
    assert weights.shape == (2 * order, 2 * order - 2)
    assert residual(weights, group) < 1e-8
    if order == 7:
        for unit in range(12):
            kept = [i for i in range(12) if i != unit]
            assert residual(weights[:, kept], group) == pytest.approx(0.236 if complex_weights else 0.275, abs=5e-4)


def test_each_real_unit_is_one_frequency() -> None:
    shares = block_shares(cyclic_construction(7), groups.cyclic(7))
    torch.testing.assert_close(shares, torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=1))


@pytest.mark.parametrize(
    ("group", "width"),
    [(groups.symmetric(3), 18), (groups.quaternion(), 22), (affine_group(7, (1, 2, 4)), 112), (groups.cyclic(8), 14)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_matrix_entries_solve_any_group(group: FiniteGroup, width: int) -> None:
    weights = matrix_entry_construction(group)
    assert weights.shape == (2 * group.order, width)
    assert residual(weights, group) < 1e-8
    last = isotypic_blocks(group)[-1].irreps[-1].dimension  # without it its share of Ỹ is left, d² of M − 1
    expected = last / (group.order - 1) ** 0.5
    assert residual(weights[:, : -2 * last**3], group) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_matrix_entries_of_s4_and_a5() -> None:
    for group, width in ((groups.symmetric(4), 126), (groups.alternating(5), 486)):
        weights = matrix_entry_construction(group)
        assert weights.shape[1] == width
        assert residual(weights, group) < 1e-8


@pytest.mark.parametrize("group", [groups.symmetric(3), groups.quaternion(), groups.dihedral(5)], ids=lambda g: g.name)
def test_random_units_of_the_blocks_solve_it_and_tied_ones_never_do(group: FiniteGroup) -> None:
    """u and v free in one block: solved with enough. [u; ±Pu], however many, leave √((d−1)/2d) of R, .866 of H2."""
    for block in isotypic_blocks(group)[1:]:
        projector = torch.tensor(block.projector)
        u, v = projector @ draw(group.order, 80), projector @ draw(group.order, 80, seed=1)
        tied = u[torch.tensor(group.inverses)]
        targets = pair_targets(group) @ projector
        for weights, expected in (
            (both_signs(u, v), 0.0),
            (both_signs(u, tied),
             {"R": ((block.dimension - 1) / (2 * block.dimension)) ** 0.5, "C": 0.7071, "H": 0.8660}[block.kind]),
        ):  # fmt: skip
            left = reconstruction_residual(pair_features(weights), targets).item()
            assert left == pytest.approx(expected, abs=1e-4), block.label


def test_even_orders_are_refused() -> None:
    for order in (1, 2, 8):
        with pytest.raises(InputError, match="odd orders from 3"):
            cyclic_construction(order)
    with pytest.raises(InputError, match="nothing to reconstruct"):
        matrix_entry_construction(groups.cyclic(1))


def test_the_residual_of_features_that_span_everything_or_nothing() -> None:
    Y = pair_targets(groups.cyclic(3))
    assert reconstruction_residual(Y, Y) < 1e-12
    assert reconstruction_residual(torch.ones(9, 2, dtype=torch.float64), Y) == pytest.approx(1)
    batch = torch.stack([Y, torch.ones_like(Y)])
    assert reconstruction_residual(batch, Y).shape == (2,)
