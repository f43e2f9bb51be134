"""Every group of order 1 to 127, in the numbering of GAP, whose SmallGroup(order, index) has the same two numbers.

Source: the Small Groups library of GAP (H. U. Besche, B. Eick, E. O'Brien, Artistic License 2.0), exported by
``tools/export_small_groups.g``. The data hold generators; a Cayley table is made when it is asked for.
"""

from __future__ import annotations

import gzip
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import FiniteGroup, check_integer

MAX_SMALL_ORDER = 127
"""Largest order in the data; there are 2,328 groups of order 128."""


@dataclass(frozen=True)
class SmallGroup:
    """What is known of a group before its table is made.

    Attributes:
        order: M.
        index: its number among the groups of that order, from 1.
        structure: GAP's StructureDescription, as ``C7 : C3``; not unique, and D10 is the dihedral group of *order* 10.
        is_abelian: whether ab = ba for all a, b.
        num_classes: number of conjugacy classes.
        degrees: dimension d of the complex irreps -> how many have it.
        irreps: kind (R, C, H) and dimension of the complex irreps, as ``C3`` -> how many; a conjugate pair is two.
        generators: for each of a few generators g the row x ↦ gx of the Cayley table.
    """

    order: int
    index: int
    structure: str
    is_abelian: bool
    num_classes: int
    degrees: dict[int, int]
    irreps: dict[str, int]
    generators: tuple[tuple[int, ...], ...]

    @property
    def max_irrep_dimension(self) -> int:
        """max_k d_k over the complex irreps."""
        return max(self.degrees)

    def group(self) -> FiniteGroup:
        """The group with its Cayley table.

        Element k is number k+1 in GAP's sorted list of the elements, so that 0 is the identity.
        """
        table = np.full((self.order, self.order), -1, dtype=np.int64)
        table[0] = np.arange(self.order)
        # The row of gx is that of x followed by g's: (gx)y = g(xy). Every element is a product of generators.
        reached = [0]
        for x in reached:
            for g in self.generators:
                if table[g[x], 0] < 0:
                    table[g[x]] = np.take(g, table[x])
                    reached.append(g[x])
        return FiniteGroup(f"{self.structure} ({self.order},{self.index})", table)


@lru_cache(maxsize=1)
def catalogue() -> dict[int, tuple[SmallGroup, ...]]:
    """Order -> its groups; the one with index i stands at place i−1."""
    text = gzip.decompress((files("li2_lightning") / "resources" / "small_groups.json.gz").read_bytes())
    groups: dict[int, list[SmallGroup]] = {}
    for entry in json.loads(text)["groups"]:
        groups.setdefault(entry["order"], []).append(
            SmallGroup(
                entry["order"],
                entry["index"],
                entry["name"],
                entry["abelian"],
                entry["classes"],
                dict(entry["degrees"]),
                dict(sorted(entry["irreps"].items(), key=lambda item: (int(item[0][1:]), "RCH".index(item[0][0])))),
                tuple(map(tuple, entry["generators"])),
            )
        )
    return {order: tuple(members) for order, members in groups.items()}


def small_group(order: int, index: int) -> FiniteGroup:
    """GAP's SmallGroup(order, index), for orders up to `MAX_SMALL_ORDER`.

    Raises:
        InputError: no such order, or no such index; the sentence says how many groups the order has.
    """
    order = check_integer(order, "order", 1, MAX_SMALL_ORDER)
    members = catalogue()[order]
    try:
        index = check_integer(index, "index", 1, len(members))
    except InputError as error:
        there_are = "there is 1 group" if len(members) == 1 else f"there are {len(members)} groups"
        allowed = "1" if len(members) == 1 else f"an integer from 1 to {len(members)}"
        raise InputError(f"index is {index!r}, but {there_are} of order {order}; allowed is {allowed}.") from error
    return members[index - 1].group()


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 groups``."""
    parser.description = (
        "List the groups that task=small_group knows. Irreps are complex: R, C and H for real, complex and\n"
        "quaternionic type, then the dimension, then how many (2C3: a conjugate pair of dimension 3)."
    )
    parser.add_argument("--max-irrep-dimension", type=int, metavar="D", help="no irrep of a larger dimension")
    parser.add_argument("--order", type=int, metavar="N", help=f"only this order, 1 to {MAX_SMALL_ORDER}")
    parser.add_argument("--non-abelian", action="store_true", help="leave out the Abelian groups")
    options = parser.parse_args(arguments)
    dimension = options.max_irrep_dimension
    if dimension is not None:
        check_integer(dimension, "--max-irrep-dimension", 1, MAX_SMALL_ORDER)
    if options.order is not None:
        check_integer(options.order, "--order", 1, MAX_SMALL_ORDER)
    chosen = [
        entry
        for order in ([options.order] if options.order is not None else catalogue())
        for entry in catalogue()[order]
        if (dimension is None or entry.max_irrep_dimension <= dimension)
        and not (options.non_abelian and entry.is_abelian)
    ]
    print("\n".join(_listing(chosen)))


def _listing(entries: Sequence[SmallGroup]) -> list[str]:
    """A header, a line for each entry in aligned columns, and how many there are."""
    rows = [("order", "index", "structure", "irreps")]
    for entry in entries:
        irreps = " ".join(kind if count == 1 else f"{count}{kind}" for kind, count in entry.irreps.items())
        rows.append((str(entry.order), str(entry.index), entry.structure, irreps))
    width = max(len(structure) for _, _, structure, _ in rows)
    lines = [f"{order:>5}  {index:>5}  {structure:<{width}}  {irreps}" for order, index, structure, irreps in rows]
    return [*lines, f"{len(entries)} group{'' if len(entries) == 1 else 's'}"]
