"""Arithmetic expressions modulo m, such as ``x^2 + x*y``, parsed by a whitelist and never executed as code."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import check_integer

IntArray = npt.NDArray[np.int64]

MAX_MODULUS = 4096
MAX_LENGTH = 200
MAX_DEPTH = 50
MAX_EXPONENT = 10_000

_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_COMPARISONS: dict[type[ast.cmpop], Callable[[IntArray, IntArray], npt.NDArray[np.bool_]]] = {
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
_REFUSED = {
    ast.Call: "a call",
    ast.Attribute: "an attribute",
    ast.Subscript: "a subscript",
    ast.Compare: "a comparison outside a condition",
    ast.Mod: "a remainder % outside a condition, although everything is taken modulo m already",
    ast.FloorDiv: "a floor division //, where / is the division modulo m",
}
_QUOTING = """on a command line it needs quotes inside quotes: task.expression="'x^2+y'\""""


@dataclass(frozen=True)
class Expression:
    """An expression that `parse` has accepted.

    The result of every operation is reduced modulo m, so int64 is exact. ``a/b`` is a·b⁻¹ and is undefined where b
    has no inverse modulo m; an expression is undefined wherever a part of it is. 0⁰ = 1. ``a if c else b`` is a where
    the comparison c holds and b elsewhere; the branch that is not taken may be undefined. A comparison is one of the
    integers 0 … m−1, or of their remainders: ``y % 2 == 1`` holds where y is odd.
    """

    text: str
    variables: tuple[str, ...]
    modulus: int
    tree: ast.expr = field(repr=False, compare=False)

    @property
    def variables_used(self) -> tuple[str, ...]:
        """The variables that occur, in the order of ``variables``."""
        names = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        return tuple(name for name in self.variables if name in names)

    def evaluate(self, operands: Sequence[npt.NDArray[np.integer]]) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """The values at ``operands``, one array of integers for each variable, of shapes that broadcast.

        Returns:
            int64 values in 0 … m−1, and a mask of the defined ones; an undefined value is 0.
        """
        values = {
            name: np.asarray(operand, dtype=np.int64) % self.modulus
            for name, operand in zip(self.variables, operands, strict=True)
        }
        defined = np.ones(np.broadcast_shapes(*(v.shape for v in values.values())), dtype=bool)
        return np.where(defined, self._value(self.tree, values, defined), 0), defined

    def _value(self, node: ast.expr, values: Mapping[str, IntArray], defined: npt.NDArray[np.bool_]) -> IntArray:
        """The value of one node; clears ``defined`` in place where a division has no result."""
        m = self.modulus
        match node:
            case ast.Constant(value=int(literal)):
                return np.asarray(literal % m, dtype=np.int64)
            case ast.Name(id=name):
                return values[name]
            case ast.UnaryOp(operand=operand):
                return -self._value(operand, values, defined) % m
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return _power(self._value(left, values, defined), _exponent(right, self.text), m)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self._value(left, values, defined), self._value(right, values, defined)
                match op:
                    case ast.Add():
                        return (a + b) % m
                    case ast.Sub():
                        return (a - b) % m
                    case ast.Mult():
                        return a * b % m
                    case ast.Div():
                        inverse = _inverses(m)[b]
                        defined &= inverse > 0
                        return a * inverse % m
            case ast.IfExp(test=test, body=body, orelse=orelse):
                holds = self._holds(test, values, defined)
                in_body, in_else = np.ones_like(defined), np.ones_like(defined)
                chosen = self._value(body, values, in_body), self._value(orelse, values, in_else)
                defined &= np.where(holds, in_body, in_else)
                return np.where(holds, *chosen)
        raise AssertionError(f"parse let {ast.dump(node)} through")

    def _holds(
        self, test: ast.expr, values: Mapping[str, IntArray], defined: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Where a condition holds; clears ``defined`` as `_value` does."""
        assert isinstance(test, ast.Compare)
        left, right = (self._side(side, values, defined) for side in (test.left, test.comparators[0]))
        return _COMPARISONS[type(test.ops[0])](left, right)

    def _side(self, side: ast.expr, values: Mapping[str, IntArray], defined: npt.NDArray[np.bool_]) -> IntArray:
        """The value of one side of a comparison, an integer."""
        match side:
            case ast.BinOp(left=left, op=ast.Mod(), right=ast.Constant(value=int(divisor))):
                return self._value(left, values, defined) % divisor
        return self._value(side, values, defined)


def parse(text: str, variables: tuple[str, ...], modulus: int) -> Expression:
    """Read an expression in ``variables`` modulo ``modulus``.

    Allowed are integers, the variables, ``+ - * /``, unary minus, parentheses, and powers, written ``^`` or
    ``**``, whose exponent is a non-negative integer; powers bind tightest and to the right. A conditional
    ``a if c else b`` has a comparison ``== != < <= > >=`` as its condition, whose sides may end in ``% k`` with an
    integer k ≥ 1.

    Raises:
        InputError: anything else, an exponent above `MAX_EXPONENT`, a text longer than `MAX_LENGTH`
            characters or nested deeper than `MAX_DEPTH`, or a modulus outside 2 … `MAX_MODULUS`.
    """
    modulus = check_integer(modulus, "modulus", 2, MAX_MODULUS)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"The expression is empty; write one in {', '.join(variables)} ({_QUOTING}).")
    if len(text) > MAX_LENGTH:
        raise InputError(f"The expression has {len(text)} characters; allowed are {MAX_LENGTH}.")
    if strange := next((c for c in text if not c.isascii() or c == "#"), None):
        _refuse(text, f"the character {strange!r}", variables)
    try:
        with warnings.catch_warnings():  # "1or x" is a SyntaxWarning in Python; the whitelist refuses it anyway
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"The expression {text!r} is not well formed; {_allowed(variables)} ({_QUOTING}).") from error
    _check(tree, text, variables, MAX_DEPTH)
    return Expression(text.strip(), variables, modulus, tree)


def _check(node: ast.expr, text: str, variables: tuple[str, ...], depth: int) -> None:
    """Raise unless every node below is on the whitelist."""
    if depth == 0:
        raise InputError(f"The expression {text!r} is nested deeper than the {MAX_DEPTH} levels that are allowed.")
    match node:
        # type() is compared, because isinstance(True, int) holds.
        case ast.Constant(value=value) if type(value) is int:
            pass
        case ast.Constant(value=value):
            _refuse(text, f"{value!r}, which is no integer", variables)
        case ast.Name(id=name) if name in variables:
            pass
        case ast.Name(id=name):
            raise InputError(
                f"The expression {text!r} has the unknown variable {name!r}; {_allowed(variables)} "
                "(a product is written x*y)."
            )
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand, text, variables, depth - 1)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            _check(left, text, variables, depth - 1)
            _exponent(right, text)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            _check(left, text, variables, depth - 1)
            _check(right, text, variables, depth - 1)
        case ast.IfExp(test=ast.Compare(left=left, ops=[op], comparators=[right]), body=body, orelse=orelse) if (
            type(op) in _COMPARISONS
        ):
            for side in (left, right):
                match side:
                    case ast.BinOp(left=inner, op=ast.Mod(), right=ast.Constant(value=value)) if (
                        type(value) is int and value > 0
                    ):
                        _check(inner, text, variables, depth - 1)
                    case _:
                        _check(side, text, variables, depth - 1)
            for branch in (body, orelse):
                _check(branch, text, variables, depth - 1)
        case ast.IfExp():
            _refuse(text, "a condition that is no comparison of two values", variables)
        case _:
            part = node.op if isinstance(node, ast.BinOp | ast.UnaryOp | ast.BoolOp) else node
            _refuse(text, _REFUSED.get(type(part), f"Python's {type(part).__name__}"), variables)


def _exponent(node: ast.expr, text: str) -> int:
    """The value of the exponent ``node``: an integer, or a power of integers such as 2^3 in x^2^3."""
    match node:
        case ast.Constant(value=value) if type(value) is int and value <= MAX_EXPONENT:
            return value
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            power: int = _exponent(left, text) ** _exponent(right, text)
            if power <= MAX_EXPONENT:
                return power
    raise InputError(
        f"The expression {text!r} has an exponent that is not allowed; it must be an integer from 0 to "
        f"{MAX_EXPONENT} (1/x is the inverse)."
    )


def _power(base: IntArray, exponent: int, m: int) -> IntArray:
    """base^exponent modulo m, by repeated squaring."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result = result * base % m
        base, exponent = base * base % m, exponent >> 1
    return result


@lru_cache(maxsize=8)
def _inverses(m: int) -> IntArray:
    """(m,) inverse of every residue, 0 where there is none."""
    return np.array([pow(a, -1, m) if math.gcd(a, m) == 1 else 0 for a in range(m)], dtype=np.int64)


def _allowed(variables: tuple[str, ...]) -> str:
    names = ", ".join(variables)
    return (
        f"allowed are integers, the variables {names}, + - * /, powers (^ or **), parentheses, a if x % 2 == 1 else b"
    )


def _refuse(text: str, what: str, variables: tuple[str, ...]) -> NoReturn:
    raise InputError(f"The expression {text!r} has {what}; {_allowed(variables)}.")
