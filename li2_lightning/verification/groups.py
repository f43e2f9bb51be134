"""The groups on which theorems are checked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from li2_lightning import groups
from li2_lightning.groups.finite_group import FiniteGroup


def affine_group(p: int, factors: tuple[int, ...]) -> FiniteGroup:
    """The maps x ↦ ax + b of Z_p with a in ``factors``, a subgroup of the units, composed like functions."""
    elements = [(a, b) for a in factors for b in range(p)]
    index = {element: i for i, element in enumerate(elements)}
    table = [[index[a * c % p, (a * d + b) % p] for c, d in elements] for a, b in elements]
    return FiniteGroup(f"Z{p}⋊Z{len(factors)}", np.array(table))


def special_linear_group(p: int) -> FiniteGroup:
    """SL(2, p): the 2×2 matrices modulo a prime p of determinant 1."""
    cells = np.stack(np.unravel_index(np.arange(p**4), (p,) * 4), axis=1)
    matrices = cells[(cells[:, 0] * cells[:, 3] - cells[:, 1] * cells[:, 2]) % p == 1].reshape(-1, 2, 2)
    place = p ** np.arange(3, -1, -1)
    codes = matrices.reshape(-1, 4) @ place
    products = np.einsum("aij,bjk->abik", matrices, matrices) % p
    return FiniteGroup(f"SL(2,{p})", np.searchsorted(codes, products.reshape(len(codes), len(codes), 4) @ place))


GROUPS: dict[str, Callable[[], FiniteGroup]] = {
    "Z7": lambda: groups.cyclic(7),
    "Z8": lambda: groups.cyclic(8),
    "Z2xZ4": lambda: groups.product("2x4"),
    "S3": lambda: groups.symmetric(3),
    "D5": lambda: groups.dihedral(5),
    "Q8": lambda: groups.quaternion(),
    "A4": lambda: groups.alternating(4),
    "Dic3": lambda: groups.quaternion(12),
    "F21": lambda: affine_group(7, (1, 2, 4)),
    "Z23": lambda: groups.cyclic(23),
    "S4": lambda: groups.symmetric(4),
    "SL23": lambda: special_linear_group(3),
    "A5": lambda: groups.alternating(5),
}
"""The groups of the checks, by their name for ``--group``; ``--quick`` uses those of order up to 12."""
