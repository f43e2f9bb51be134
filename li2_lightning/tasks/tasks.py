"""The tasks: every tuple of operands with its label, from a group, a Cayley table, or an expression."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from li2_lightning import groups
from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import MAX_ORDER, FiniteGroup, OperationTable, check_integer
from li2_lightning.groups.representations import max_irrep_dimension
from li2_lightning.groups.small_groups import small_group
from li2_lightning.plugins import Registry, beyond_defaults, identifies
from li2_lightning.tasks import expressions
from li2_lightning.theory.sampling import critical_fraction

IntArray = npt.NDArray[np.int64]

MAX_ROWS = 2**22
"""Largest number of rows N = M^k of a task."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""Names of the operands in a word, in order."""

MAX_WORD = 100
"""Largest number of letters of a word."""

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
        no_group: where a table was given that is no group, the axiom that it violates, in words; else None.
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
    no_group: str | None = None

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

    def why_no_group(self) -> str:
        """For a message about a task without a group: "this task is no group", with the reason where it is known."""
        return "this task is no group" + (f" ({self.no_group})" if self.no_group else "")


TASKS: Registry[Callable[..., Task]] = Registry("task", "li2_lightning.tasks", makes=Task)


def build_task(config: Mapping[str, Any]) -> Task:
    """The task of a ``task`` section, which has ``name`` and options; an option of None counts as unset.

    Raises:
        InputError: unknown name, an option that is unknown to the task or missing, or a value out of range.
    """
    try:
        task: Task = TASKS.build(config["name"], "task", _options(config))
    except InputError as error:
        # The constructors of groups name an argument, such as order; the user wrote the config key, such as task.order.
        sentence = re.sub(r"^(order|index|degree|factors|modulus|num_operands) is ", r"task.\1 is ", str(error))
        if unknown := re.search(r"has no option .*\(from (task\.\w+)\)", sentence):
            sentence += f" {unknown[1]}=null leaves out what a preset has set."
        raise InputError(sentence) from error
    return task


@identifies("task")
def task_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``task`` section without the options that equal the defaults of the task, for `config_hash`."""
    return {"name": config["name"], **beyond_defaults(TASKS.find(config["name"]), _options(config))}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a ``task`` section that are set."""
    return {key: value for key, value in config.items() if key != "name" and value is not None}


@TASKS.register("cyclic")
def _cyclic(order: int = 71, num_operands: int = 2, word: str | None = None) -> Task:
    return group_task(groups.cyclic(order), num_operands, word)


@TASKS.register("product")
def _product(factors: str, num_operands: int = 2, word: str | None = None) -> Task:
    return group_task(groups.product(factors), num_operands, word)


@TASKS.register("symmetric")
def _symmetric(degree: int, num_operands: int = 2, word: str | None = None) -> Task:
    return group_task(groups.symmetric(degree), num_operands, word)


@TASKS.register("alternating")
def _alternating(degree: int, num_operands: int = 2, word: str | None = None) -> Task:
    return group_task(groups.alternating(degree), num_operands, word)


@TASKS.register("dihedral")
def _dihedral(degree: int, num_operands: int = 2, word: str | None = None) -> Task:
    return group_task(groups.dihedral(degree), num_operands, word)


@TASKS.register("quaternion")
def _quaternion(order: int = 8, num_operands: int = 2, word: str | None = None) -> Task:
    return group_task(groups.quaternion(order), num_operands, word)


@TASKS.register("small_group")
def _small_group(order: int, index: int, num_operands: int = 2, word: str | None = None) -> Task:
    return group_task(small_group(order, index), num_operands, word)


@TASKS.register("cayley_table")
def _cayley_table(path: str, num_operands: int = 2, word: str | None = None) -> Task:
    """A table of a group is the task of that group; any other operation is learned as ((ab)c)…"""
    read = groups.operation_from_table(path)
    if read.violation is None:
        return group_task(FiniteGroup(read.name, read.table, read.elements), num_operands, word)
    if word is not None:
        raise InputError(f"task.word={word!r} needs a group, and {path} is none: {read.violation}; leave it out.")
    operands = _all_operands(read.order, num_operands)
    labels = _products(read, operands.T)
    return Task(read.name, operands, labels, read.order, read.order, no_group=read.violation)


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
    return _task_of_labels(name, operands[defined], labels[defined], modulus)


def group_task(group: FiniteGroup, num_operands: int = 2, word: str | None = None) -> Task:
    """The task of the product g₁g₂…g_k in a group of order M, or of another word, with N = Mᵏ rows.

    Args:
        word: letters a, b, … of the operands and A, B, … of their inverses, multiplied from left to right: ``abA`` is
            g₁g₂g₁⁻¹. None: the product of all operands.

    Raises:
        InputError: ``num_operands`` is no integer ≥ 1, N exceeds `MAX_ROWS`, or the word has another character.
    """
    operands = _all_operands(group.order, num_operands)
    if word is not None and word != LETTERS[:num_operands]:
        labels = _products(group, _letters(word, operands, group))
        return _task_of_labels(f"{group.name}, {word}", operands, labels, group.order)
    labels = _products(group, operands.T)
    predicted = None
    if num_operands == 2 and group.order >= 3:
        predicted = critical_fraction(group.order, max_irrep_dimension(group))
    return Task(group.name, operands, labels, group.order, group.order, group, predicted)


def _letters(word: str, operands: IntArray, group: FiniteGroup) -> Iterator[IntArray]:
    """The values of each letter of a word, (N,)."""
    known = LETTERS[: operands.shape[1]]
    if not 0 < len(word) <= MAX_WORD or not {*word.lower()} <= {*known}:
        raise InputError(
            f"task.word={word!r} does not fit; it is up to {MAX_WORD} of the letters {', '.join(known)}, one for each "
            f"operand, and {', '.join(known.upper())} for their inverses, as in abA."
        )
    for letter in word:
        values = operands[:, known.index(letter.lower())]
        yield values if letter.islower() else group.inverses[values]


def _products(operation: OperationTable, factors: Iterable[IntArray]) -> IntArray:
    """((ab)c)… of factors of shape (N,) each, (N,)."""
    return functools.reduce(lambda left, right: operation.table[left, right], factors)


def _task_of_labels(name: str, operands: IntArray, labels: IntArray, order: int) -> Task:
    """A task with M = C = ``order``; the task of a group if all products of two operands are there and make one."""
    if operands.shape == (order**2, 2) and order <= MAX_ORDER:
        try:
            return group_task(FiniteGroup(name, labels.reshape(order, order)))
        except InputError:
            pass  # most expressions and words are no group
    return Task(name, operands, labels, order, order)


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
