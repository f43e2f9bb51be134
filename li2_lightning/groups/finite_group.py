"""Finite groups as Cayley tables, validated when they are made; and tables of operations that are no group.

An element is its index 0 … M−1 and ``table[a, b]`` is the index of the product ab. The constructors state
which index is which element; nothing else in the library assumes an order, not even that the identity is 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from li2_lightning.errors import InputError, message
from li2_lightning.files import read_npy, read_npz

IntArray = npt.NDArray[np.int64]

MAX_ORDER = 1024
"""Largest order M: a table is M×M, and a two-operand task has M² rows."""


@dataclass(frozen=True, eq=False)
class OperationTable:
    """A binary operation on M elements, of which nothing but closure is required: a quasigroup, a monoid, …

    Args:
        name: the name in reports.
        table: (M, M) integers, ``table[a, b]`` = index of ab. Kept as a read-only int64 copy.
        elements: M labels, for messages and pictures; None: the label of an element is its index.

    Raises:
        InputError: the table is not square, larger than `MAX_ORDER`, or holds an entry that is no element.
    """

    name: str
    table: IntArray
    elements: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        table = np.asarray(self.table)
        if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.size:
            raise InputError(
                f"The Cayley table of {self.name} has shape {table.shape}; it needs as many rows as columns, "
                "at least one."
            )
        if len(table) > MAX_ORDER:
            raise InputError(f"The Cayley table of {self.name} has order {len(table)}; allowed is up to {MAX_ORDER}.")
        if table.dtype.kind not in "iu":
            raise InputError(
                f"The Cayley table of {self.name} holds {table.dtype} entries; it needs integers from 0 to "
                f"{len(table) - 1}."
            )
        if self.elements is not None and len(self.elements) != len(table):
            raise InputError(f"{self.name} has {len(table)} elements but {len(self.elements)} labels.")
        outside = np.argwhere((table < 0) | (table >= len(table)))
        if len(outside):
            a, b = outside[0]
            counts_from_1 = table.min() == 1 and table.max() == len(table)
            why = "; the table counts from 1, as GAP does, so subtract 1 from every entry" if counts_from_1 else ""
            raise InputError(
                f"The Cayley table of {self.name} is not closed: {self.label(a)}·{self.label(b)} = {table[a, b]} is "
                f"not among the elements 0 to {len(table) - 1}{why}."
            )
        object.__setattr__(self, "table", _frozen(table))

    @property
    def order(self) -> int:
        """Number of elements M."""
        return len(self.table)

    def label(self, element: int) -> str:
        """The label of an element, for messages and pictures."""
        return str(element) if self.elements is None else self.elements[element]

    @cached_property
    def violation(self) -> str | None:
        """The first axiom of a group that the table violates, in words; None for a group."""
        return _violated_axiom(self.table, self.label)


@dataclass(frozen=True, eq=False)
class FiniteGroup(OperationTable):
    """A finite group given by its Cayley table; two groups are equal when their tables are. Arguments as there.

    Raises:
        InputError: as for `OperationTable`, or the table violates an axiom (identity, inverses, associativity); the
            message names the first elements that do.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.violation is not None:
            raise InputError(f"The Cayley table of {self.name} is no group: {self.violation}.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FiniteGroup) and (self is other or np.array_equal(self.table, other.table))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.table.tobytes())

    @cached_property
    def identity(self) -> int:
        """Index of the identity."""
        return int(np.flatnonzero(self.table[0] == 0)[0])

    @cached_property
    def inverses(self) -> IntArray:
        """(M,) index of every element's inverse."""
        return _frozen(np.argmax(self.table == self.identity, axis=1))

    @cached_property
    def is_abelian(self) -> bool:
        """Whether ab = ba for all a, b."""
        return np.array_equal(self.table, self.table.T)

    @cached_property
    def generator(self) -> int | None:
        """The first element whose powers are the whole group: 1 in Z_M; None if the group is not cyclic."""
        if not self.is_abelian:
            return None
        everything = np.arange(self.order)
        powers, orders = everything, np.ones(self.order, dtype=np.int64)
        while (unfinished := powers != self.identity).any():
            orders += unfinished
            # An element whose power is the identity stays there.
            powers = np.where(unfinished, self.table[powers, everything], powers)
        generators = np.flatnonzero(orders == self.order)
        return int(generators[0]) if len(generators) else None

    @cached_property
    def class_of(self) -> IntArray:
        """(M,) number of the conjugacy class of each element, in the order of `conjugacy_classes`."""
        conjugates = self.table[self.table, self.inverses[:, None]]  # row g, column x: g x g⁻¹
        return _frozen(np.unique(conjugates.min(axis=0), return_inverse=True)[1])

    @cached_property
    def conjugacy_classes(self) -> tuple[IntArray, ...]:
        """The classes as sorted arrays of elements, ordered by their smallest element."""
        return tuple(_frozen(np.flatnonzero(self.class_of == k)) for k in range(self.class_of.max() + 1))


def cyclic(order: int) -> FiniteGroup:
    """Z_order: the integers 0 … order−1 under addition; element k has index k."""
    order = check_integer(order, "order", 1, MAX_ORDER)
    k = np.arange(order)
    return FiniteGroup(f"Z{order}", (k[:, None] + k) % order)


def product(factors: str) -> FiniteGroup:
    """Direct product: ``"2x3x4"`` is Z2×Z3×Z4, and ``"S3x2"`` is S3×Z2.

    A factor is the order of a cyclic group, or S, A, D or Q with the argument of `symmetric`, `alternating`, `dihedral`
    or `quaternion`. The index of (k₁, k₂, …) is the mixed-radix number k₁k₂…, the last factor varying fastest.

    Raises:
        InputError: ``factors`` is not of this form, or the order of the product exceeds `MAX_ORDER`.
    """
    refused = InputError(
        f"factors is {factors!r}; allowed are integers from 1 and groups such as S3, A4, D5 and Q8, joined by x, as in "
        f"2x3x4 and S3x2, with a product of at most {MAX_ORDER} elements."
    )
    if not isinstance(factors, str) or not re.fullmatch(f"{_FACTOR}(x{_FACTOR})*", factors):
        raise refused
    try:
        made = [_MAKERS[kind](int(number)) for kind, number in re.findall(r"([SADQ]?)([0-9]+)", factors)]
    except InputError:
        raise refused from None
    orders = [group.order for group in made]
    if math.prod(orders) > MAX_ORDER:
        raise refused
    digits = np.unravel_index(np.arange(math.prod(orders)), orders)
    tables = [group.table[np.ix_(place, place)] for group, place in zip(made, digits, strict=True)]
    labels = tuple(
        f"({','.join(group.label(k) for group, k in zip(made, element, strict=True))})"
        for element in np.stack(digits).T.tolist()
    )
    table = np.ravel_multi_index(tuple(tables), orders).astype(np.int64)
    return FiniteGroup("×".join(group.name for group in made), table, labels)


def symmetric(degree: int) -> FiniteGroup:
    """S_degree, order degree!, for degree 1 to 6.

    Elements are the permutations of 0 … degree−1 in lexicographic order of (p(0), p(1), …), so that the
    identity is element 0. A product acts like a composition of functions: (ab)(i) = a(b(i)).
    """
    degree = check_integer(degree, "degree", 1, 6)
    return _permutation_group(f"S{degree}", np.array(list(permutations(range(degree)))))


def alternating(degree: int) -> FiniteGroup:
    """A_degree, the even permutations, for degree 1 to 6; order and composition as for `symmetric`."""
    degree = check_integer(degree, "degree", 1, 6)
    perms = np.array(list(permutations(range(degree))))
    i, j = np.triu_indices(degree, 1)
    inversions = (perms[:, i] > perms[:, j]).sum(axis=1)
    return _permutation_group(f"A{degree}", perms[inversions % 2 == 0])


def dihedral(degree: int) -> FiniteGroup:
    """D_degree, the symmetries of the regular polygon with ``degree`` corners; order 2·degree.

    Element a·degree + k is rᵏsᵃ (k < degree, a < 2) with s² = 1 and sr = r⁻¹s.
    """
    degree = check_integer(degree, "degree", 1, MAX_ORDER // 2)
    return _turns_and_flips(f"D{degree}", degree, 0)


def quaternion(order: int = 8) -> FiniteGroup:
    """The generalized quaternion (dicyclic) group of an order 4m ≥ 8: Q8, Q16, …; 12 gives Dic3.

    Element 2ma + k is rᵏsᵃ (k < 2m, a < 2) with s² = rᵐ and sr = r⁻¹s.
    """
    m, rest = divmod(check_integer(order, "order", 8, MAX_ORDER), 4)
    if rest:
        raise InputError(f"order is {order}; allowed for quaternion groups are the multiples of 4 from 8 on.")
    return _turns_and_flips(f"Q{order}" if m & (m - 1) == 0 else f"Dic{m}", 2 * m, m)


# The makers of the factors of a product, by the letter before the number.
_MAKERS = {"": cyclic, "S": symmetric, "A": alternating, "D": dihedral, "Q": quaternion}
_FACTOR = r"[SADQ]?0*[1-9][0-9]{0,3}"


def from_table(path: str | Path) -> FiniteGroup:
    """Read the Cayley table of a group; files and errors as for `operation_from_table`.

    Raises:
        InputError: also a table that is no group.
    """
    read = operation_from_table(path)
    try:
        return FiniteGroup(read.name, read.table, read.elements)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def operation_from_table(path: str | Path) -> OperationTable:
    """Read the table of a binary operation from a file; row a, column b holds ab.

    ``.csv`` and ``.txt`` hold one row a line, cells separated by commas or blanks (``#`` starts a comment);
    ``.json`` a list of lists; ``.npy`` an array; ``.npz`` an array called ``table``. Cells are indices
    from 0, or, in the text formats, labels: then the first row and column both list the elements in order.

    Raises:
        InputError: missing, unreadable, pickled or malformed file, or a table that is not closed.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], npt.NDArray[Any] | list[list[str]]]] = {
        ".csv": _read_text,
        ".txt": _read_text,
        ".json": _read_json,
        ".npy": read_npy,
        ".npz": _read_npz,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"The Cayley table {path} has none of the known endings {', '.join(readers)}.")
    try:
        cells = readers[path.suffix.lower()](path)
    # Parsers raise many kinds of exceptions over a broken file; for the user they all mean that it cannot be read.
    except Exception as error:
        raise InputError(f"The Cayley table {path} cannot be read: {message(error)}.") from error
    try:
        table, labels = _indices_and_labels(cells) if isinstance(cells, list) else (cells, None)
        return OperationTable(path.stem, table, labels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_integer(value: Any, name: str, low: int, high: int) -> int:
    """``value`` as an int, or an `InputError` that states the range of ``name``; True and 3.0 are no integers."""
    if isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high:
        return int(value)
    raise InputError(f"{name} is {value!r}; allowed is an integer from {low} to {high}.")


def _frozen(array: npt.NDArray[Any]) -> IntArray:
    array = array.astype(np.int64)
    array.setflags(write=False)
    return array


def _violated_axiom(table: npt.NDArray[Any], label: Callable[[int], str]) -> str | None:
    """The first violation in a closed table, in words; None for a group."""
    order = len(table)
    everything = np.arange(order)
    neutral = (table == everything).all(axis=1) & (table == everything[:, None]).all(axis=0)
    if not neutral.any():
        return "it has no identity, no element e with e·a = a·e = a for every a"
    identity = np.argmax(neutral)
    cancels = table == identity
    invertible = (cancels & cancels.T).any(axis=1)
    if not invertible.all():
        return f"{label(int(np.argmin(invertible)))} has no inverse"
    # Light's test: the g with (ag)b = a(gb) for all a, b form a group, so checking generators is enough, and
    # every generator that passes at least doubles what has been covered.
    covered = np.array([identity])
    while len(covered) < order:
        g = np.setdiff1d(everything, covered)[0]
        left, right = table[table[:, g]], table[:, table[g]]
        wrong = np.argwhere(left != right)
        if len(wrong):
            a, b = wrong[0]
            return (
                f"it is not associative, ({label(a)}·{label(g)})·{label(b)} = {label(left[a, b])} but "
                f"{label(a)}·({label(g)}·{label(b)}) = {label(right[a, b])}"
            )
        covered, size = np.append(covered, g), 0
        while len(covered) > size:
            size = len(covered)
            covered = np.unique(table[np.ix_(covered, covered)])
    return None


def _permutation_group(name: str, perms: npt.NDArray[np.int64]) -> FiniteGroup:
    """The group whose elements are the rows of ``perms``, which are closed and in lexicographic order."""
    place_values = perms.shape[1] ** np.arange(perms.shape[1])[::-1]
    codes = perms @ place_values
    table = np.searchsorted(codes, perms[:, perms] @ place_values)
    return FiniteGroup(name, table, tuple("".join(map(str, perm)) for perm in perms.tolist()))


def _turns_and_flips(name: str, turns: int, flip_squared: int) -> FiniteGroup:
    """Elements rᵏsᵃ at index a·turns + k, with r^turns = 1, s² = r^flip_squared, sr = r⁻¹s."""
    a, k = np.divmod(np.arange(2 * turns), turns)
    turn = k[:, None] + np.where(a, -1, 1)[:, None] * k + flip_squared * (a[:, None] & a)
    labels = tuple(f"r{i}{'s' * flip}" for flip, i in zip(a.tolist(), k.tolist(), strict=True))
    return FiniteGroup(name, turn % turns + turns * (a[:, None] ^ a), labels)


def _read_text(path: Path) -> list[list[str]]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [[c.strip() for c in line.split(",")] if "," in line else line.split() for line in lines if line]


def _read_json(path: Path) -> list[list[str]]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("it must hold a list of lists")
    return [[str(cell) for cell in row] for row in rows]


def _read_npz(path: Path) -> npt.NDArray[Any]:
    return read_npz(path, ("table",))["table"]


def _indices_and_labels(rows: list[list[str]]) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    """The table and the labels of text cells; cells are indices if every cell is an integer, else labels."""
    for number, row in enumerate(rows):
        if len(row) != len(rows):
            raise InputError(f"Row {number} of the Cayley table has {len(row)} cells, but there are {len(rows)} rows.")
    if all(re.fullmatch(r"-?[0-9]{1,18}", cell) for row in rows for cell in row):
        return np.array([[int(cell) for cell in row] for row in rows], dtype=np.int64), None
    labels = tuple(rows[0])
    if len(set(labels)) < len(labels) or [row[0] for row in rows] != rows[0]:
        raise InputError("The first row and column of a Cayley table of labels must list the elements in one order.")
    index = {label: position for position, label in enumerate(labels)}
    for a, row in zip(labels, rows, strict=True):
        for b, cell in zip(labels, row, strict=True):
            if cell not in index:
                raise InputError(f"The Cayley table is not closed: {a}·{b} = {cell!r} is not among the elements.")
    return np.array([[index[cell] for cell in row] for row in rows], dtype=np.int64), labels
