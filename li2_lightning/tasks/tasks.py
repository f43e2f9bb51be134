"""The tasks: every tuple of operands with its label, from a group, a Cayley table, or an expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from li2_lightning import groups
from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import MAX_ORDER, FiniteGroup, check_integer
from li2_lightning.groups.representations import max_irrep_dimension
from li2_lightning.groups.small_groups import small_group
from li2_lightning.plugins import Registry, beyond_defaults, identifies
from li2_lightning.tasks import expressions
from li2_lightning.theory.sampling import critical_fraction

IntArray = npt.NDArray[np.int64]

MAX_ROWS = 2**22
"""Largest number of rows N = M^k of a task."""

VARIABLES = tuple("xyz" + "wvutsrqponmlkjihgfedcba")
"""Names of the operands in an expression, in order."""


@dataclass(frozen=True, eq=False)
class Task:
    """The table that a network learns: N rows of k operands, each row with a label.

    Attributes:
        name: the name in messages and reports.
        operands: (N, k) tokens 0 … num_tokens−1; row-major, the last operand varies fastest.
        labels: (N,) classes 0 … num_classes−1.
        num_tokens: M.
        num_classes: C.
        group: the group whose products are the labels, or None.
        predicted_fraction: training fraction at which generalization is expected, for two-operand group tasks
            from M = 3 on (`critical_fraction`; it may exceed 1), else None.

    Raises:
        InputError: shapes that do not fit, or tokens or labels out of range.
    """

    name: str
    operands: IntArray
    labels: IntArray
    num_tokens: int
    num_classes: int
    group: FiniteGroup | None = None
    predicted_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.operands.ndim != 2 or self.labels.shape != self.operands.shape[:1] or not self.operands.size:
            raise InputError(
                f"The task {self.name} has operands of shape {self.operands.shape} and labels of shape "
                f"{self.labels.shape}; they must be (N, k) and (N,), not empty."
            )
        for what, array, stop in (
            ("operands", self.operands, self.num_tokens),
            ("labels", self.labels, self.num_classes),
        ):
            if array.dtype != np.int64 or array.min() < 0 or array.max() >= stop:
                raise InputError(f"The {what} of the task {self.name} must be int64 from 0 to {stop - 1}.")

    @property
    def num_operands(self) -> int:
        """k."""
        return int(self.operands.shape[1])


TASKS: Registry[Callable[..., Task]] = Registry("task", "li2_lightning.tasks", makes=Task)


def build_task(config: Mapping[str, Any]) -> Task:
    """The task of a ``task`` section, which has ``name`` and options; an option of None counts as unset.

    Raises:
        InputError: unknown name, an option that is unknown to the task or missing, or a value out of range.
    """
    options = {key: value for key, value in config.items() if key != "name" and value is not None}
    try:
        task: Task = TASKS.build(config["name"], "task", options)
    except InputError as error:
        # The constructors of groups name an argument, such as order; the user wrote the config key, such as task.order.
        sentence = re.sub(r"^(order|index|degree|factors|modulus|num_operands) is ", r"task.\1 is ", str(error))
        raise InputError(sentence) from error
    return task


@identifies("task")
def task_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``task`` section without the options that equal the defaults of the task, for `config_hash`."""
    options = {key: value for key, value in config.items() if key != "name" and value is not None}
    return {"name": config["name"], **beyond_defaults(TASKS.find(config["name"]), options)}


@TASKS.register("cyclic")
def _cyclic(order: int = 71, num_operands: int = 2) -> Task:
    return group_task(groups.cyclic(order), num_operands)


@TASKS.register("product")
def _product(factors: str, num_operands: int = 2) -> Task:
    return group_task(groups.product(factors), num_operands)


@TASKS.register("symmetric")
def _symmetric(degree: int, num_operands: int = 2) -> Task:
    return group_task(groups.symmetric(degree), num_operands)


@TASKS.register("alternating")
def _alternating(degree: int, num_operands: int = 2) -> Task:
    return group_task(groups.alternating(degree), num_operands)


@TASKS.register("dihedral")
def _dihedral(degree: int, num_operands: int = 2) -> Task:
    return group_task(groups.dihedral(degree), num_operands)


@TASKS.register("quaternion")
def _quaternion(order: int = 8, num_operands: int = 2) -> Task:
    return group_task(groups.quaternion(order), num_operands)


@TASKS.register("small_group")
def _small_group(order: int, index: int, num_operands: int = 2) -> Task:
    return group_task(small_group(order, index), num_operands)


@TASKS.register("cayley_table")
def _cayley_table(path: str, num_operands: int = 2) -> Task:
    return group_task(groups.from_table(path), num_operands)


@TASKS.register("expression")
def expression_task(expression: str, modulus: int, num_operands: int = 2) -> Task:
    """The task of an arithmetic expression modulo m in the operands x, y, z, w, v, u, …

    Rows on which a division is undefined are left out. If the table of a two-operand expression is a group, as that of
    x+y is, the task has that group.
    """
    modulus = check_integer(modulus, "modulus", 2, expressions.MAX_MODULUS)
    operands = _all_operands(modulus, num_operands)
    # The parser knows more variables than the task has operands, so that the error can advise to raise num_operands.
    parsed = expressions.parse(expression, VARIABLES[: max(num_operands, 6)], modulus)
    needed = max((VARIABLES.index(variable) + 1 for variable in parsed.variables_used), default=0)
    if needed > num_operands:
        raise InputError(
            f"The expression {expression!r} uses {VARIABLES[needed - 1]}, operand number {needed}; raise "
            f"task.num_operands from {num_operands} to {needed}."
        )
    padding = [np.zeros(1, dtype=np.int64)] * (len(parsed.variables) - num_operands)
    labels, defined = parsed.evaluate([*operands.T, *padding])
    name = f"{parsed.text} mod {modulus}"
    if not defined.any():
        raise InputError(f"The expression {expression!r} is undefined everywhere modulo {modulus}.")
    if num_operands == 2 and modulus <= MAX_ORDER and defined.all():
        try:
            return group_task(FiniteGroup(name, labels.reshape(modulus, modulus)), num_operands)
        except InputError:
            pass  # most expressions are no group
    return Task(name, operands[defined], labels[defined], modulus, modulus)


def group_task(group: FiniteGroup, num_operands: int = 2) -> Task:
    """The task of the product g₁g₂…g_k in a group of order M, with N = Mᵏ rows.

    Raises:
        InputError: ``num_operands`` is no integer ≥ 1, or N exceeds `MAX_ROWS`.
    """
    operands = _all_operands(group.order, num_operands)
    labels = operands[:, 0].copy()
    for operand in operands.T[1:]:
        labels = group.table[labels, operand]
    predicted = None
    if num_operands == 2 and group.order >= 3:
        predicted = critical_fraction(group.order, max_irrep_dimension(group))
    return Task(group.name, operands, labels, group.order, group.order, group, predicted)


def _all_operands(num_tokens: int, num_operands: int) -> IntArray:
    """Every k-tuple of tokens in row-major order, (M^k, k)."""
    num_operands = check_integer(num_operands, "num_operands", 1, 22)
    rows = num_tokens**num_operands
    if rows > MAX_ROWS:
        raise InputError(
            f"{num_operands} operands of {num_tokens} tokens make {rows} rows; allowed are up to {MAX_ROWS}."
        )
    place_values = num_tokens ** np.arange(num_operands)[::-1]
    return (np.arange(rows)[:, None] // place_values % num_tokens).astype(np.int64)
