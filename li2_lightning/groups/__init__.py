"""Finite groups: their tables, every group up to order 127, and their representations."""

from li2_lightning.groups.finite_group import (
    FiniteGroup,
    alternating,
    cyclic,
    dihedral,
    from_table,
    product,
    quaternion,
    symmetric,
)

__all__ = ["FiniteGroup", "alternating", "cyclic", "dihedral", "from_table", "product", "quaternion", "symmetric"]
