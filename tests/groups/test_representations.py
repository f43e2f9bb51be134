"""Characters and isotypic blocks: against published values, and against what defines them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from li2_lightning import groups
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import (
    block_basis,
    block_legend,
    block_slices,
    character_table,
    isotypic_blocks,
    max_irrep_dimension,
)

TOLERANCE = 1e-9


def matrices_modulo(p: int, keep: object) -> FiniteGroup:
    """The 2×2 matrices modulo p that ``keep`` selects, under multiplication."""
    elements = [m for m in product(range(p), repeat=4) if keep(*m)]  # type: ignore[operator]
    index = {m: i for i, m in enumerate(elements)}

    def times(m: tuple[int, ...], n: tuple[int, ...]) -> int:
        (a, b, c, d), (e, f, g, h) = m, n
        return index[(a * e + b * g) % p, (a * f + b * h) % p, (c * e + d * g) % p, (c * f + d * h) % p]

    return FiniteGroup("matrices", np.array([[times(m, n) for n in elements] for m in elements]))


SL23 = matrices_modulo(3, lambda a, b, c, d: (a * d - b * c) % 3 == 1)
# Affine maps x ↦ ax + b of Z7 with a in {1, 2, 4}: Z7⋊Z3.
F21 = matrices_modulo(7, lambda a, b, c, d: a in (1, 2, 4) and c == 0 and d == 1)

# Kinds and dimensions of the non-trivial real blocks, from the literature.
BLOCKS = {
    "Z7": (groups.cyclic(7), 3 * ["C1"]),
    "Z8": (groups.cyclic(8), ["R1"] + 3 * ["C1"]),
    "Z23": (groups.cyclic(23), 11 * ["C1"]),
    "Z2×Z4": (groups.product("2x4"), 3 * ["R1"] + 2 * ["C1"]),
    "S3": (groups.symmetric(3), ["R1", "R2"]),
    "D5": (groups.dihedral(5), ["R1", "R2", "R2"]),
    "D4": (groups.dihedral(4), 3 * ["R1"] + ["R2"]),
    "Q8": (groups.quaternion(), 3 * ["R1"] + ["H2"]),
    "Q16": (groups.quaternion(16), 3 * ["R1"] + ["R2"] + 2 * ["H2"]),
    "Dic3": (groups.quaternion(12), ["R1", "C1", "R2", "H2"]),
    "A4": (groups.alternating(4), ["C1", "R3"]),
    "S4": (groups.symmetric(4), ["R1", "R2", "R3", "R3"]),
    "A5": (groups.alternating(5), ["R3", "R3", "R4", "R5"]),
    "S5": (groups.symmetric(5), ["R1", "R4", "R4", "R5", "R5", "R6"]),
    "F21": (F21, ["C1", "C3"]),
    "SL(2,3)": (SL23, ["C1", "R3", "C2", "H2"]),
}
CONSTRUCTED = [
    *(groups.cyclic(order) for order in (1, 2, 7, 8, 71, 97, 128)),
    *(groups.product(factors) for factors in ("2x3x4", "2x2x2x2x2x2x2", "11x11", "6x4x2")),
    *(groups.symmetric(degree) for degree in range(1, 7)),
    *(groups.alternating(degree) for degree in range(1, 7)),
    *(groups.dihedral(degree) for degree in (1, 2, 5, 6, 63, 64)),
    *(groups.quaternion(order) for order in (8, 12, 16, 64, 128)),
    SL23,
    F21,
]
every_group = pytest.mark.parametrize("group", CONSTRUCTED, ids=lambda group: f"{group.name}-{group.order}")


@pytest.mark.parametrize("name", BLOCKS)
def test_kinds_and_dimensions(name: str) -> None:
    group, expected = BLOCKS[name]
    blocks = isotypic_blocks(group)
    assert sorted(f"{block.kind}{block.dimension}" for block in blocks[1:]) == sorted(expected)
    for block in blocks:
        assert block.real_dimension == block.dimension * (1 if block.kind == "R" else 2)
        assert block.rank == block.dimension**2 * (2 if block.kind == "C" else 1)
        assert len(block.irreps) == (2 if block.kind == "C" else 1)


@every_group
def test_one_character_a_class_and_the_squares_sum_to_the_order(group: FiniteGroup) -> None:
    irreps = character_table(group)
    assert len(irreps) == len(group.conjugacy_classes)
    assert sum(irrep.dimension**2 for irrep in irreps) == group.order
    assert [irrep.index for irrep in irreps] == list(range(len(irreps)))


@every_group
def test_characters_are_orthonormal_class_functions(group: FiniteGroup) -> None:
    irreps = character_table(group)
    table = np.array([irrep.character for irrep in irreps])
    gram = table @ table.conj().T / group.order
    assert np.abs(gram - np.eye(len(irreps))).max() < TOLERANCE
    for irrep in irreps:
        assert abs(irrep.character[group.identity] - irrep.dimension) < TOLERANCE
        assert np.abs(irrep.character[group.inverses] - irrep.character.conj()).max() < TOLERANCE
        assert np.array_equal(irreps[irrep.conjugate].character, irrep.character.conj())
        assert (irrep.conjugate != irrep.index) is (irrep.kind == "C")
        for members in group.conjugacy_classes:
            assert len(np.unique(irrep.character[members])) == 1


@every_group
def test_characters_are_multiplicative_on_average(group: FiniteGroup) -> None:
    # χ(x)χ(y) = d · mean over g of χ(x g y g⁻¹) singles out irreducible characters among all class functions.
    generator = np.random.default_rng(1)
    x, y = generator.integers(group.order, size=2)
    conjugates = group.table[group.table[:, y], group.inverses]
    for irrep in character_table(group):
        mean = irrep.character[group.table[x, conjugates]].mean()
        assert abs(irrep.character[x] * irrep.character[y] - irrep.dimension * mean) < TOLERANCE


@every_group
def test_projectors(group: FiniteGroup) -> None:
    total = np.zeros((group.order, group.order))
    left = group.table[1 % group.order]  # f(ax) and f(xa) for one element a
    right = group.table[:, -1]
    blocks = isotypic_blocks(group)
    for number, block in enumerate(blocks):
        Pi = block.projector
        if number >= 12:  # the sum below covers the rest
            total += Pi
            continue
        assert Pi.dtype == np.float64
        assert np.abs(Pi - Pi.T).max() < TOLERANCE
        assert np.abs(Pi @ Pi - Pi).max() < TOLERANCE
        assert abs(np.trace(Pi) - block.rank) < TOLERANCE * group.order
        assert np.abs(Pi @ total).max() < TOLERANCE  # orthogonal to all before it
        assert np.abs(Pi[np.ix_(left, left)] - Pi).max() < TOLERANCE
        assert np.abs(Pi[np.ix_(right, right)] - Pi).max() < TOLERANCE
        # w and Pw, (Pf)(g) = f(g⁻¹), lie in the same block: the two halves of a weight are judged together.
        assert np.abs(Pi[np.ix_(group.inverses, group.inverses)] - Pi).max() < TOLERANCE
        total += Pi
    assert np.abs(total - np.eye(group.order)).max() < TOLERANCE
    assert np.abs(blocks[0].projector - 1 / group.order).max() < TOLERANCE
    assert [block.trivial for block in blocks] == [True] + [False] * (len(blocks) - 1)


@every_group
def test_the_basis_gives_the_norm_in_each_block(group: FiniteGroup) -> None:
    basis, slices, blocks = block_basis(group), block_slices(group), isotypic_blocks(group)[1:]
    assert basis.shape == (group.order, group.order - 1)
    np.testing.assert_allclose(basis.T @ basis, np.eye(group.order - 1), rtol=0, atol=TOLERANCE)
    assert [s.stop - s.start for s in slices] == [block.rank for block in blocks]
    assert [*(s.start for s in slices), group.order - 1] == [0, *(s.stop for s in slices)]
    w = np.random.default_rng(2).standard_normal((group.order, 5))
    squares = (basis.T @ w) ** 2
    for block, columns in zip(blocks, slices, strict=True):
        assert np.abs(squares[columns].sum(0) - ((block.projector @ w) ** 2).sum(0)).max() < TOLERANCE


@pytest.mark.parametrize("order", [7, 8, 71, 97, 128])
def test_cyclic_groups_have_the_fourier_modes(order: int) -> None:
    g = np.arange(order)
    blocks = isotypic_blocks(groups.cyclic(order))
    pairs = [block for block in blocks if block.kind == "C"]
    assert len(pairs) == (order - 1) // 2
    for frequency, block in enumerate(pairs, start=1):  # and in the order of the frequencies
        wave = np.exp(2j * np.pi * frequency * g / order)
        assert np.abs(block.irreps[0].character - wave).max() < TOLERANCE
        assert np.abs(block.irreps[1].character - wave.conj()).max() < TOLERANCE
        assert np.abs(block.projector @ wave - wave).max() < TOLERANCE
    real = [block.irreps[0].character.real for block in blocks if block.kind == "R"]
    expected = [np.ones(order)] + ([(-1.0) ** g] if order % 2 == 0 else [])
    assert np.abs(np.array(real) - expected).max() < TOLERANCE


@pytest.mark.parametrize("degree", [3, 4, 5, 6])
def test_symmetric_groups_have_the_sign_and_the_standard_character(degree: int) -> None:
    group = groups.symmetric(degree)
    assert group.elements is not None
    perms = np.array([list(map(int, label)) for label in group.elements])
    sign = np.rint(np.linalg.det(np.eye(degree)[perms]))
    standard = (perms == np.arange(degree)).sum(axis=1) - 1
    table = np.array([irrep.character for irrep in character_table(group)])
    for character in (sign, standard, sign * standard):
        assert np.abs(table - character).max(axis=1).min() < TOLERANCE


def test_the_quaternionic_character_of_q8() -> None:
    # 2 at 1, −2 at −1, 0 elsewhere: the same values as for D4, and only χ(g²) tells the two apart.
    character = isotypic_blocks(groups.quaternion())[-1].irreps[0].character
    assert np.abs(character - [2, 0, -2, 0, 0, 0, 0, 0]).max() < TOLERANCE
    assert np.abs(isotypic_blocks(groups.dihedral(4))[-1].irreps[0].character - character).max() < TOLERANCE


def test_the_golden_ratio_in_a5() -> None:
    values = {round(x, 9) for x in isotypic_blocks(groups.alternating(5))[1].irreps[0].character.real}
    assert values == {3, 0, -1, round((1 + 5**0.5) / 2, 9), round((1 - 5**0.5) / 2, 9)}


def test_labels() -> None:
    assert [b.label for b in isotypic_blocks(groups.symmetric(4))] == ["trivial", "R1", "R2", "R3.1", "R3.2"]
    assert [b.label for b in isotypic_blocks(groups.product("2x4"))] == [
        "trivial",
        "R1.1",
        "R1.2",
        "R1.3",
        "C1.1",
        "C1.2",
    ]


@pytest.mark.parametrize("group", [groups.cyclic(5), groups.cyclic(8), groups.product("2x3"), groups.alternating(3)],
                         ids=lambda group: group.name)  # fmt: skip
def test_a_block_of_a_cyclic_group_is_named_by_its_frequency(group: FiniteGroup) -> None:
    """The wave of frequency k over the powers of the generator lies in the block named k."""
    powers = [group.identity]
    while len(powers) < group.order:
        powers.append(int(group.table[powers[-1], group.generator]))
    named = {block.label: block for block in isotypic_blocks(group)[1:]}
    assert set(named) == {f"k = {k}" for k in range(1, group.order // 2 + 1)}
    for k in range(1, group.order // 2 + 1):
        wave = np.empty(group.order)
        wave[powers] = np.cos(2 * np.pi * k * np.arange(group.order) / group.order + 0.3)
        assert np.abs(named[f"k = {k}"].projector @ wave - wave).max() < TOLERANCE


def test_one_element_generates_a_cyclic_group_and_no_other() -> None:
    assert [groups.cyclic(order).generator for order in (1, 2, 9)] == [0, 1, 1]
    product = groups.product("2x3")
    assert product.generator is not None
    assert product.label(product.generator) == "(1,1)"
    others = (groups.product("2x4"), groups.symmetric(3), groups.quaternion())
    assert [group.generator for group in others] == [None, None, None]


def test_the_legend_explains_the_labels_that_there_are() -> None:
    assert block_legend(groups.cyclic(7)) == "k: frequency"
    assert "(1,1)" in block_legend(groups.product("2x3"))
    assert block_legend(groups.symmetric(4)) == (
        "irreps by kind (R real) and dimension; .1, .2 … number irreps that share both"
    )
    assert block_legend(groups.quaternion()).startswith("irreps by kind (R real, H quaternionic)")
    assert "number" not in block_legend(F21)


def test_the_largest_dimension() -> None:
    for group in CONSTRUCTED:
        assert max_irrep_dimension(group) == max(irrep.dimension for irrep in character_table(group))


def test_nothing_depends_on_the_numbering_of_the_elements() -> None:
    for group, expected in BLOCKS.values():
        new = np.random.default_rng(3).permutation(group.order)
        table = np.empty_like(group.table)
        table[np.ix_(new, new)] = new[group.table]
        blocks = isotypic_blocks(FiniteGroup("renumbered", table))
        assert sorted(f"{block.kind}{block.dimension}" for block in blocks[1:]) == sorted(expected)
        assert blocks[0].trivial
        assert np.abs(blocks[0].projector - 1 / group.order).max() < TOLERANCE


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda factors: np.prod(factors) <= 100))
def test_products_have_products_of_waves(factors: list[int]) -> None:
    group = groups.product("x".join(map(str, factors)))
    digits = np.stack(np.unravel_index(np.arange(group.order), factors))
    phases = np.einsum("if,ig->fg", digits / np.array(factors)[:, None], digits)  # frequency × element
    waves = np.exp(2j * np.pi * phases)
    characters = np.array([irrep.character for irrep in character_table(group)])
    overlap = np.abs(waves @ characters.conj().T) / group.order
    assert np.abs(np.sort(overlap, axis=1)[:, -1] - 1).max() < TOLERANCE
    assert len(set(overlap.argmax(axis=1).tolist())) == group.order


def test_results_are_cached_and_cannot_be_changed() -> None:
    group = groups.cyclic(12)
    assert character_table(group) is character_table(groups.cyclic(12))
    assert isotypic_blocks(group) is isotypic_blocks(groups.cyclic(12))
    for array in (block_basis(group), character_table(group)[1].character, isotypic_blocks(group)[1].kernel):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
