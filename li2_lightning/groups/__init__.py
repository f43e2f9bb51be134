"""Finite groups: Cayley tables, every group of order up to 127, and representations."""

from li2_lightning.groups.finite_group import (
    FiniteGroup,
    OperationTable,
    alternating,
    cyclic,
    dihedral,
    from_table,
    operation_from_table,
    product,
    quaternion,
    symmetric,
)

__all__ = [
    "FiniteGroup",
    "OperationTable",
    "alternating",
    "cyclic",
    "dihedral",
    "from_table",
    "operation_from_table",
    "product",
    "quaternion",
    "symmetric",
]
