"""Irreducible characters and real isotypic blocks of any finite group, from its Cayley table alone.

Over ℝ the functions on a group split into isotypic blocks, one for each real irreducible representation.
Over ℂ that is one irrep of real type (R), a conjugate pair (C), or twice one of quaternionic type (H), each
of dimension d; the real irreducible has dimension d_R = d, 2d, 2d, and the block has rank d², 2d², d².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from li2_lightning.groups.finite_group import FiniteGroup

RealArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]
Kind = Literal["R", "C", "H"]
Scalar = TypeVar("Scalar", bound=np.generic)

_KINDS: dict[int, Kind] = {1: "R", 0: "C", -1: "H"}  # by Frobenius–Schur indicator


@dataclass(frozen=True, eq=False)
class Irrep:
    """One complex irreducible representation, given by its character.

    Attributes:
        index: its position in `character_table`.
        conjugate: the position of its complex conjugate, equal to ``index`` unless the kind is C.
        dimension: d = χ(e).
        kind: R, C or H, for Frobenius–Schur indicator 1, 0, −1.
        character: (M,) χ(g) of every element; read-only.
    """

    index: int
    conjugate: int
    dimension: int
    kind: Kind
    character: ComplexArray

    @property
    def real_dimension(self) -> int:
        """d_R, the dimension of the real irreducible representation it belongs to."""
        return self.dimension if self.kind == "R" else 2 * self.dimension


@dataclass(frozen=True, eq=False)
class Block:
    """One real isotypic block of the functions on a group.

    Attributes:
        label: its name in pictures and reports; `block_legend` explains it. In a cyclic group the frequency, ``k = 5``;
            in other groups `type`, with a number if several blocks share it, ``R1``, ``H2``, ``C1.3``; or ``trivial``.
        irreps: its complex irreps: a conjugate pair for kind C, else one.
        kernel: (M,) k with Π[x, y] = k(xy⁻¹); read-only.
    """

    label: str
    group: FiniteGroup
    irreps: tuple[Irrep, ...]
    kernel: RealArray

    @property
    def kind(self) -> Kind:
        """Kind of the irreps: R, C or H."""
        return self.irreps[0].kind

    @property
    def dimension(self) -> int:
        """d, the dimension of each of its complex irreps."""
        return self.irreps[0].dimension

    @property
    def type(self) -> str:
        """Kind and dimension: ``R1``, ``H2``."""
        return f"{self.kind}{self.dimension}"

    @property
    def real_dimension(self) -> int:
        """d_R, the dimension of its real irreducible representation."""
        return self.irreps[0].real_dimension

    @property
    def rank(self) -> int:
        """Dimension of the block: d² for R and H, 2d² for C."""
        return sum(irrep.dimension**2 for irrep in self.irreps)

    @property
    def trivial(self) -> bool:
        """Whether it is the block of constant functions."""
        return self.irreps[0].index == 0

    @property
    def projector(self) -> RealArray:
        """(M, M) orthogonal projector Π[x, y] = (d/M) Σ χ(xy⁻¹) over its irreps; computed at each access."""
        return self.kernel[self.group.table[:, self.group.inverses]]


@lru_cache(maxsize=64)
def character_table(group: FiniteGroup) -> tuple[Irrep, ...]:
    """The complex irreducible characters, one a conjugacy class.

    The characters are the eigenvectors of the Hermitian matrix by which a random Hermitian central element acts on the
    class functions. They are ordered by dimension, then R, C, H, then real part over the classes, largest first. So the
    trivial character is number 0, and the pairs of a cyclic group are in order of frequency. The result is
    deterministic; its error is near 1e-12 at order 128.
    """
    classes = group.class_of
    sizes = np.bincount(classes)
    rows = _central_eigenvectors(group).T * np.sqrt(group.order / sizes)  # irreps × classes, each up to a phase
    at_identity = rows[:, classes[group.identity]]
    rows = rows * (at_identity.conj() / np.abs(at_identity))[:, None]
    squares = classes[np.diagonal(group.table)]
    indicators = np.rint(rows[:, squares].mean(axis=1).real).astype(int)

    found: list[tuple[int, Kind, ComplexArray]] = []
    for row, indicator in zip(rows, indicators.tolist(), strict=True):
        kind = _KINDS[indicator]
        # Of a conjugate pair only the member with positive imaginary part is kept; the other is its exact conjugate.
        if kind == "C" and row.imag[np.argmax(np.abs(row.imag) > 1e-6)] < 0:
            continue
        found.append((round(np.abs(row[classes[group.identity]])), kind, row if kind == "C" else row.real + 0j))
    found.sort(key=lambda entry: (entry[0], "RCH".index(entry[1]), tuple(-np.round(entry[2].real, 6))))

    irreps: list[Irrep] = []
    for dimension, kind, row in found:
        here = len(irreps)
        values = row[classes]
        if kind == "C":
            irreps.append(Irrep(here, here + 1, dimension, kind, _frozen(values)))
            irreps.append(Irrep(here + 1, here, dimension, kind, _frozen(values.conj())))
        else:
            irreps.append(Irrep(here, here, dimension, kind, _frozen(values)))
    if len(irreps) != len(sizes) or sum(irrep.dimension**2 for irrep in irreps) != group.order:
        raise RuntimeError(f"The characters of {group.name} did not separate; this is a defect of li2_lightning.")
    return tuple(irreps)


@lru_cache(maxsize=64)
def isotypic_blocks(group: FiniteGroup) -> tuple[Block, ...]:
    """The real isotypic blocks in the order of `character_table`: trivial first, a pair as one block."""
    irreps = character_table(group)
    members = [tuple(irreps[i] for i in sorted({e.index, e.conjugate})) for e in irreps if e.index <= e.conjugate]
    blocks = []
    for label, pair in zip(_labels(group, members), members, strict=True):
        kernel = sum(irrep.dimension / group.order * irrep.character.real for irrep in pair)
        blocks.append(Block(label, group, pair, _frozen(np.asarray(kernel))))
    return tuple(blocks)


def block_legend(group: FiniteGroup) -> str:
    """One line that explains the labels of ``isotypic_blocks(group)``."""
    generator = group.generator
    if generator is not None:
        counted = "" if group.label(generator) == "1" else f", counted from the generator {group.label(generator)}"
        return f"k: frequency{counted}"
    words = {"R": "real", "C": "complex", "H": "quaternionic"}
    blocks = isotypic_blocks(group)[1:]
    kinds = ", ".join(f"{kind} {words[kind]}" for kind in words if any(block.kind == kind for block in blocks))
    several = "; .1, .2 … number irreps that share both" if any("." in block.label for block in blocks) else ""
    return f"irreps by kind ({kinds}) and dimension{several}"


def _labels(group: FiniteGroup, members: Sequence[tuple[Irrep, ...]]) -> list[str]:
    """The labels of the blocks; the trivial block comes first."""
    if group.generator is not None:
        # χ(g) = exp(2πik/M) at the generator g; the conjugate character has the frequency M−k.
        angles = [abs(np.angle(pair[0].character[group.generator])) for pair in members[1:]]
        return ["trivial"] + [f"k = {round(angle * group.order / (2 * np.pi))}" for angle in angles]
    types = ["trivial"] + [f"{pair[0].kind}{pair[0].dimension}" for pair in members[1:]]
    return [
        f"{name}.{types[: position + 1].count(name)}" if types.count(name) > 1 else name
        for position, name in enumerate(types)
    ]


def max_irrep_dimension(group: FiniteGroup) -> int:
    """max_k d_k over the complex irreps; 1 exactly for Abelian groups."""
    return 1 if group.is_abelian else character_table(group)[-1].dimension


@lru_cache(maxsize=16)
def block_basis(group: FiniteGroup) -> RealArray:
    """(M, M−1) orthonormal columns that span the non-trivial blocks one after the other, as in `block_slices`.

    If a is the part of ``basis.T @ w`` in the slice of block k, ‖Π_k w‖² = ‖a‖². Read-only.
    """
    # One eigendecomposition gives all blocks: Σ k·Π_k has the eigenvalue k on block k.
    kernel = sum(position * block.kernel for position, block in enumerate(isotypic_blocks(group)))
    _, vectors = np.linalg.eigh(np.asarray(kernel)[group.table[:, group.inverses]])
    return _frozen(np.ascontiguousarray(vectors[:, 1:]))


def block_slices(group: FiniteGroup) -> tuple[slice, ...]:
    """Columns of `block_basis` that span each of ``isotypic_blocks(group)[1:]``."""
    ends = np.cumsum([0] + [block.rank for block in isotypic_blocks(group)[1:]]).tolist()
    return tuple(slice(start, end) for start, end in pairwise(ends))


@lru_cache(maxsize=16)
def irreducible_subspaces(group: FiniteGroup) -> tuple[RealArray, ...]:
    """Each real isotypic block as an orthogonal sum of irreducible left-invariant subspaces.

    For block k of `isotypic_blocks` there is an array (rank/d_R, M, d_R). The orthonormal columns of entry i span a
    subspace that is irreducible under (L_g f)(x) = f(g⁻¹x), and the subspaces are orthogonal to each other. Every
    maximum of the energy lies in one irreducible subspace of a block (Theorem 2 of arXiv:2509.21519, as corrected),
    which need not be one of these. Read-only; errors as for `character_table`.
    """
    # A matrix that commutes with every L_g is a convolution from the right, R[x, y] = b(y⁻¹x), symmetric where
    # b(g) = b(g⁻¹). On a block of multiplicity m it has m eigenvalues, each on an irreducible subspace.
    blocks, basis, slices = isotypic_blocks(group), block_basis(group), block_slices(group)
    generator = np.random.default_rng(0)
    found = [_frozen(np.full((1, group.order, 1), group.order**-0.5))]
    for block, columns in zip(blocks[1:], slices, strict=True):
        Q, multiplicity = basis[:, columns], block.rank // block.real_dimension
        if multiplicity == 1:
            found.append(_frozen(Q[None].copy()))
            continue
        for _ in range(1000):
            b = generator.standard_normal(group.order)
            values, vectors = np.linalg.eigh(Q.T @ _right_convolution(group, b + b[group.inverses]) @ Q)
            starts = values[:: block.real_dimension]
            if np.diff(starts).min() > 0.1 / multiplicity**2 * np.abs(values).max():
                break
        else:
            raise RuntimeError(f"Block {block.label} of {group.name} did not split; this is a defect of li2_lightning.")
        parts = (Q @ vectors).reshape(group.order, multiplicity, block.real_dimension)
        found.append(_frozen(np.ascontiguousarray(parts.transpose(1, 0, 2))))
    return tuple(found)


@lru_cache(maxsize=16)
def matrix_irreps(group: FiniteGroup) -> tuple[ComplexArray, ...]:
    """The unitary matrices ρ(g) of every complex irrep, (M, d, d) each, in the order of `character_table`.

    ρ(g)ρ(h) = ρ(gh), tr ρ(g) = χ(g), and the matrices of a conjugate pair are exact conjugates. For every j the columns
    of B = √(d/M)·conj ρ(·)[:, :, j] (M×d) are an orthonormal basis of an irreducible left-invariant subspace of the
    complex functions on the group. Read-only; errors as for `character_table`.
    """
    irreps, found = character_table(group), dict[int, ComplexArray]()
    quotients = group.table[group.inverses]  # row g, column x: g⁻¹x
    for block, subspaces in zip(isotypic_blocks(group), irreducible_subspaces(group), strict=True):
        irrep, B = block.irreps[0], subspaces[0] + 0j
        if irrep.kind != "R":
            B = B @ _complex_half(group, subspaces[0])
        rho = B.conj().T @ B[quotients]
        if irrep.kind == "C":
            # The half may belong to the conjugate irrep; the mean product of tr ρ with χ̄ is then 0 instead of 1.
            if abs((np.trace(rho, axis1=1, axis2=2) * irrep.character.conj()).mean()) < 0.5:
                rho = rho.conj()
            found[irrep.conjugate] = _frozen(rho.conj())
        found[irrep.index] = _frozen(rho)
    return tuple(found[irrep.index] for irrep in irreps)


def _complex_half(group: FiniteGroup, subspace: RealArray) -> ComplexArray:
    """(2d, d) coordinates of a complex invariant half of a real irreducible subspace of kind C or H.

    The matrices that commute with the group on the subspace form ℂ or ℍ. An antisymmetric one, J, has J² = −c², so iJ
    has the eigenvalues ±c on two invariant halves.
    """
    generator = np.random.default_rng(1)
    for _ in range(1000):
        S = _right_convolution(group, generator.standard_normal(group.order))
        J = subspace.T @ S @ subspace
        J = J - J.T
        values, vectors = np.linalg.eigh(1j * J)
        if values[-1] > 0.1:  # c is about 1; a small c would split inaccurately
            return np.asarray(vectors[:, len(values) // 2 :])
    raise RuntimeError(f"A subspace of {group.name} did not split over ℂ; this is a defect of li2_lightning.")


def _right_convolution(group: FiniteGroup, b: RealArray) -> RealArray:
    """R[x, y] = b(y⁻¹x), which commutes with every left translation."""
    return b[group.table[group.inverses].T]


def _central_eigenvectors(group: FiniteGroup) -> ComplexArray:
    """Eigenvectors (columns) of a random Hermitian central element c on the normalized class functions.

    N[j, k] = Σ c(x) over x, y with y ∈ C_j, xy ∈ C_k, divided by √(|C_j||C_k|).
    """
    classes = group.class_of
    sizes = np.bincount(classes)
    count = len(sizes)
    inverse_class = classes[group.inverses[[members[0] for members in group.conjugacy_classes]]]
    pairs = (classes * count + classes[group.table]).ravel()
    generator = np.random.default_rng(0)
    for _ in range(1000):
        # Scaled so that the eigenvalue at an irrep is an independent Gaussian of deviation √M/d.
        c = (generator.standard_normal(count) + 1j * generator.standard_normal(count)) / np.sqrt(sizes)
        c = (c + c[inverse_class].conj())[classes].repeat(group.order)
        sums = np.bincount(pairs, c.real, count**2) + 1j * np.bincount(pairs, c.imag, count**2)
        values, vectors = np.linalg.eigh(sums.reshape(count, count) / np.sqrt(np.outer(sizes, sizes)))
        # An eigenvector is off by rounding/gap, and the closest of n random eigenvalues are about 1/n² apart.
        if count == 1 or np.diff(values).min() > 0.1 / count**2 * np.abs(values).max():
            return vectors
    raise RuntimeError(f"No central element of {group.name} separates its irreps; this is a defect of li2_lightning.")


def _frozen(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    array.setflags(write=False)
    return array
