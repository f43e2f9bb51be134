"""Finite groups: Cayley tables, every group of order up to 127, and representations."""

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
