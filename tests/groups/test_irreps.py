"""Irreducible left-invariant subspaces and explicit irreps: against what defines them, and against published tables."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from li2_lightning import groups
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import (
    character_table,
    irreducible_subspaces,
    isotypic_blocks,
    matrix_irreps,
)
from li2_lightning.verification.groups import affine_group, special_linear_group

TOLERANCE = 1e-9


GROUPS = [
    *(groups.cyclic(order) for order in (1, 2, 7, 8, 71, 128)),
    groups.product("2x4"),
    groups.product("2x2x2x2x2x2x2"),
    *(groups.symmetric(degree) for degree in (3, 4, 5)),
    groups.alternating(4),
    groups.alternating(5),
    *(groups.dihedral(degree) for degree in (4, 5, 64)),
    *(groups.quaternion(order) for order in (8, 12, 16, 128)),
    affine_group(7, (1, 2, 4)),
    affine_group(11, tuple(range(1, 11))),
    special_linear_group(3),
    special_linear_group(5),
]
every_group = pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group.name}-{group.order}")


@every_group
def test_subspaces_are_an_orthonormal_cut_of_their_block(group: FiniteGroup) -> None:
    for block, subspaces in zip(isotypic_blocks(group), irreducible_subspaces(group), strict=True):
        assert subspaces.shape == (block.rank // block.real_dimension, group.order, block.real_dimension)
        basis = subspaces.transpose(1, 0, 2).reshape(group.order, block.rank)
        assert np.abs(basis.T @ basis - np.eye(block.rank)).max() < TOLERANCE
        assert np.abs(basis @ basis.T - block.projector).max() < TOLERANCE


@every_group
def test_left_translations_keep_every_subspace(group: FiniteGroup) -> None:
    for subspaces in irreducible_subspaces(group)[:12]:
        for g in {1 % group.order, group.order // 2, group.order - 1}:
            moved = subspaces[:, group.table[group.inverses[g]]]  # f(g⁻¹x)
            kept = subspaces @ (subspaces.transpose(0, 2, 1) @ moved)
            assert np.abs(kept - moved).max() < TOLERANCE


@every_group
def test_subspaces_are_irreducible(group: FiniteGroup) -> None:
    """By Schur: the mean of χ² over the group is 1, 2, 4 for a real irreducible character of kind R, C, H."""
    for block, subspaces in zip(isotypic_blocks(group), irreducible_subspaces(group), strict=True):
        moved = subspaces[0][group.table[group.inverses]]
        character = np.einsum("xi,gxi->g", subspaces[0], moved)
        assert abs((character**2).mean() - {"R": 1, "C": 2, "H": 4}[block.kind]) < TOLERANCE


@every_group
def test_irreps_are_unitary_multiply_and_have_their_character(group: FiniteGroup) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(group.order, size=(2, 200))
    for irrep, rho in zip(character_table(group), matrix_irreps(group), strict=True):
        assert rho.shape == (group.order, irrep.dimension, irrep.dimension)
        assert np.abs(rho @ rho.conj().transpose(0, 2, 1) - np.eye(irrep.dimension)).max() < TOLERANCE
        assert np.abs(rho[x] @ rho[y] - rho[group.table[x, y]]).max() < TOLERANCE
        assert np.abs(np.trace(rho, axis1=1, axis2=2) - irrep.character).max() < TOLERANCE
        assert irrep.kind != "R" or not rho.imag.any()
        assert irrep.conjugate == irrep.index or np.array_equal(matrix_irreps(group)[irrep.conjugate], rho.conj())


@every_group
def test_matrix_entries_are_an_orthogonal_basis_of_all_functions(group: FiniteGroup) -> None:
    """Peter–Weyl: √(d/M)·ρ_ij over all irreps is unitary as an M×M matrix."""
    rows = [
        np.sqrt(rho.shape[1] / group.order) * rho.reshape(group.order, -1).T
        for rho in matrix_irreps(group)
    ]  # fmt: skip
    entries = np.concatenate(rows)
    assert np.abs(entries @ entries.conj().T - np.eye(group.order)).max() < TOLERANCE


def test_a_column_of_entries_spans_an_invariant_subspace() -> None:
    group = special_linear_group(3)
    for rho in matrix_irreps(group):
        B = np.sqrt(rho.shape[1] / group.order) * rho[:, :, 0].conj()
        assert np.abs(B.conj().T @ B - np.eye(rho.shape[1])).max() < TOLERANCE
        for g in range(0, group.order, 5):
            assert np.abs(B[group.table[group.inverses[g]]] - B @ rho[g]).max() < TOLERANCE


def test_nothing_depends_on_the_numbering_of_the_elements() -> None:
    for group in (groups.quaternion(), special_linear_group(3), groups.symmetric(4)):
        new = np.random.default_rng(3).permutation(group.order)
        table = np.empty_like(group.table)
        table[np.ix_(new, new)] = new[group.table]
        renumbered = FiniteGroup("renumbered", table)
        for rho in matrix_irreps(renumbered):
            assert np.abs(rho[table[3, 5]] - rho[3] @ rho[5]).max() < TOLERANCE
            assert np.abs(rho[renumbered.identity] - np.eye(rho.shape[1])).max() < TOLERANCE


PHI, W = (1 + 5**0.5) / 2, np.exp(2j * np.pi / 3)
# Rows as in the literature; each column is (size of the class, order of its elements), which tells classes apart
# but for a pair of inverse classes or of Galois conjugates: those stand side by side and may be swapped.
PUBLISHED = {
    "S4": (groups.symmetric(4), [(1, 1), (6, 2), (3, 2), (8, 3), (6, 4)],
           [[1, 1, 1, 1, 1], [1, -1, 1, 1, -1], [2, 0, 2, -1, 0], [3, 1, -1, 0, -1], [3, -1, -1, 0, 1]]),
    "A5": (groups.alternating(5), [(1, 1), (15, 2), (20, 3), (12, 5), (12, 5)],
           [[1, 1, 1, 1, 1], [3, -1, 0, PHI, 1 - PHI], [3, -1, 0, 1 - PHI, PHI], [4, 0, 1, -1, -1],
            [5, 1, -1, 0, 0]]),
    "Q8": (groups.quaternion(), [(1, 1), (1, 2), (2, 4), (2, 4), (2, 4)],
           [[1, 1, 1, 1, 1], [1, 1, 1, -1, -1], [1, 1, -1, 1, -1], [1, 1, -1, -1, 1], [2, -2, 0, 0, 0]]),
    "D5": (groups.dihedral(5), [(1, 1), (5, 2), (2, 5), (2, 5)],
           [[1, 1, 1, 1], [1, -1, 1, 1], [2, 0, PHI - 1, -PHI], [2, 0, -PHI, PHI - 1]]),
    "SL(2,3)": (special_linear_group(3), [(1, 1), (1, 2), (6, 4), (4, 3), (4, 3), (4, 6), (4, 6)],
                [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, W, W**2, W**2, W], [1, 1, 1, W**2, W, W, W**2],
                 [2, -2, 0, -1, -1, 1, 1], [2, -2, 0, -W, -W**2, W**2, W], [2, -2, 0, -W**2, -W, W, W**2],
                 [3, 3, -1, 0, 0, 0, 0]]),
}  # fmt: skip


def signature(group: FiniteGroup) -> list[tuple[int, int]]:
    """(size, order of the elements) of every class."""
    pairs = []
    for members in group.conjugacy_classes:
        power, order = int(members[0]), 1
        while power != group.identity:
            power, order = int(group.table[power, members[0]]), order + 1
        pairs.append((len(members), order))
    return pairs


@pytest.mark.parametrize("name", PUBLISHED)
def test_character_tables_are_the_published_ones(name: str) -> None:
    """Equal as sets of columns: each class of ours with its size, order and sorted values, matched row by row."""
    group, columns, rows = PUBLISHED[name]
    representatives = [members[0] for members in group.conjugacy_classes]
    ours = np.array([irrep.character[representatives] for irrep in character_table(group)])
    published = np.array(rows, dtype=complex)
    assert sorted(signature(group)) == sorted(columns)
    # Classes of one signature can be told apart only up to a permutation that is a symmetry of the table: try all.
    slots: dict[tuple[int, int], list[int]] = {}
    for place, kind in enumerate(columns):
        slots.setdefault(kind, []).append(place)
    own = signature(group)
    choices = [permutations([i for i, kind in enumerate(own) if kind == wanted]) for wanted in slots]
    wanted_rows = sorted(map(str, (np.round(published, 6) + 0).tolist()))
    for choice in product(*choices):
        order = np.empty(len(columns), dtype=int)
        for places, chosen in zip(slots.values(), choice, strict=True):
            order[places] = chosen
        if sorted(map(str, (np.round(ours[:, order], 6) + 0).tolist())) == wanted_rows:
            return
    raise AssertionError(np.round(ours, 3))


def test_subspaces_and_irreps_are_cached_and_cannot_be_changed() -> None:
    group = groups.dihedral(7)
    assert matrix_irreps(group) is matrix_irreps(groups.dihedral(7))
    assert irreducible_subspaces(group) is irreducible_subspaces(groups.dihedral(7))
    for array in (matrix_irreps(group)[0], irreducible_subspaces(group)[-1]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
