"""Expressions modulo m: what they mean, and that nothing else gets through."""

from __future__ import annotations

import ast
import operator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, reject, settings
from hypothesis import strategies as st

from li2_lightning.errors import InputError
from li2_lightning.tasks.expressions import MAX_LENGTH, MAX_MODULUS, parse

XY = ("x", "y")


def evaluate(text: str, *values: int, modulus: int = 97) -> int | None:
    """One value, None where undefined."""
    result, defined = parse(text, ("x", "y", "z")[: len(values)], modulus).evaluate([np.array([v]) for v in values])
    assert result.dtype == np.int64
    assert result.shape == defined.shape == (1,)
    return int(result[0]) if defined[0] else None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-1", 96),
        ("x", 3),
        (" x\t+ y ", 10),
        ("x-y", 93),
        ("x + y*2", 17),
        ("(x + y)*2", 20),
        ("x^2 + y", 16),
        ("x**2 + y", 16),
        ("-x^2", 88),  # the power binds tighter than the minus
        ("(-x)^2", 9),
        ("2*x^2", 18),
        ("x^2*2", 18),
        ("x^2^3", 3**8 % 97),
        ("(x^2)^3", 3**6 % 97),
        ("x^0", 1),
        ("0^0", 1),
        ("x - y - 1", 92),
        ("--x", 3),
        ("1_000*x", 3000 % 97),
        ("0x10", 16),
        ("12345678901234567890", 12345678901234567890 % 97),
        ("x^10000", pow(3, 10_000, 97)),
        ("y/x", 7 * pow(3, -1, 97) % 97),
        ("y/x*x", 7),
        ("1/(x-3)", None),
        ("0/(x-3)", None),
        ("(1/(x-3))^0", None),
        ("0*(1/(x-3))", None),
        ("x if y % 2 == 1 else y", 3),
        ("x if y % 2 == 0 else y", 7),
        ("x if -y % 2 == 0 else y", 3),  # −7 is 90 mod 97
        ("x if x < y else 1/(x-3)", 3),  # the branch that is not taken may be undefined
        ("x if x >= y else 1/(x-3)", None),
        ("5 if 1/(x-3) == 0 else 5", None),
        ("x + (1 if x^2 != 9 else 2)", 5),
        ("1 if x > y else 2 if x <= 3 else 3", 2),
    ],
)
def test_meaning_at_x_3_y_7_modulo_97(text: str, value: int | None) -> None:
    assert evaluate(text, 3, 7) == value


def test_division_needs_a_unit() -> None:
    x, y = np.indices((12, 12))
    values, defined = parse("x/y", XY, 12).evaluate([x, y])
    assert set(y[defined]) == {1, 5, 7, 11}
    assert np.all(values[defined] * y[defined] % 12 == x[defined])
    assert not values[~defined].any()


def test_operands_are_reduced_and_broadcast() -> None:
    values, defined = parse("x - y", XY, 7).evaluate([np.array([[-1], [20]]), np.array([0, 1, 2])])
    assert values.tolist() == [[6, 5, 4], [6, 5, 4]]
    assert defined.all()
    assert defined.shape == (2, 3)
    constant, _ = parse("3", XY, 7).evaluate([np.zeros(4, int), np.zeros(4, int)])
    assert constant.tolist() == [3, 3, 3, 3]


def test_the_largest_modulus_is_exact() -> None:
    m = MAX_MODULUS
    x = np.arange(m)
    values, _ = parse("(x*x*x - 1)^9999 * (x+1)", ("x",), m).evaluate([x])
    assert values.tolist() == [pow(v**3 - 1, 9999, m) * (v + 1) % m for v in range(m)]


def test_variables_used() -> None:
    assert parse("z + x*z", ("x", "y", "z"), 5).variables_used == ("x", "z")
    assert parse("1", XY, 5).variables_used == ()


# Random trees as nested tuples, evaluated here over the rationals: modulo a prime p an expression is defined
# when no divisor is 0 modulo p, and its value is then that of the exact fraction.
trees = st.recursive(
    st.integers(0, 10**6) | st.sampled_from(["x", "y"]),
    lambda inner: (
        st.tuples(st.sampled_from("+-*/"), inner, inner)
        | st.tuples(st.just("neg"), inner)
        | st.tuples(st.just("^"), inner, st.integers(0, 5))
    ),
    max_leaves=8,
)


def spell(tree: object) -> str:
    match tree:
        case ("neg", a):
            return f"(-{spell(a)})"
        case ("^", a, int(n)):
            return f"{spell(a) if isinstance(a, str) else f'({spell(a)})'}^{n}"
        case (str(op), a, b):
            return f"({spell(a)}{op}{spell(b)})"
        case _:
            return str(tree)


def exact(tree: object, values: dict[str, int], p: int) -> Fraction | None:
    """The value over the rationals; None where a divisor is 0 modulo p."""
    match tree:
        case int(n):
            return Fraction(n)
        case str(name):
            return Fraction(values[name])
        case ("neg", a):
            a = exact(a, values, p)
            return None if a is None else -a
        case ("^", a, int(n)):
            a = exact(a, values, p)
            if a is not None and n * max(a.numerator.bit_length(), a.denominator.bit_length()) > 10_000:
                reject()  # the exact value is too large to be worth its time
            return None if a is None else a**n
        case (str(op), a, b):
            a, b = exact(a, values, p), exact(b, values, p)
            if a is None or b is None or (op == "/" and b.numerator % p == 0):
                return None
            return {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[op](b)
    raise AssertionError(tree)


@settings(max_examples=300, deadline=None)
@given(tree=trees, x=st.integers(0, 96), y=st.integers(0, 96), p=st.sampled_from([2, 3, 31, 97, 4093]))
def test_against_the_rational_numbers(tree: object, x: int, y: int, p: int) -> None:
    text = spell(tree)
    value = exact(tree, {"x": x, "y": y}, p)
    assume(len(text) <= MAX_LENGTH)
    parsed = parse(text, XY, p)
    found, defined = parsed.evaluate([np.array([x]), np.array([y])])
    assert bool(defined[0]) is (value is not None)
    if value is not None:
        assert found[0] == value.numerator * pow(value.denominator, -1, p) % p


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["x", "y", "2", "3"]), min_size=2, max_size=9), st.data())
def test_precedence_is_pythons(atoms: list[str], data: st.DataObject) -> None:
    text = atoms[0]
    for atom in atoms[1:]:
        op = data.draw(st.sampled_from(["+", "-", "*", "*-", "--"]))
        text += op + atom + data.draw(st.sampled_from(["", "^2", "**3"]))
    x, y, m = 5, 11, 101
    tree = ast.parse(text.replace("^", "**"), mode="eval").body

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(n)):
                return n
            case ast.Name(id=name):
                return {"x": x, "y": y}[name]
            case ast.UnaryOp(operand=a):
                return -value(a)
            case ast.BinOp(left=a, op=o, right=b):
                python = {"Add": operator.add, "Sub": operator.sub, "Mult": operator.mul, "Pow": operator.pow}
                return python[type(o).__name__](value(a), value(b))
        raise AssertionError

    assert evaluate(text, x, y, modulus=m) == value(tree) % m


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        (None, "empty"),
        (5, "empty"),
        ("f(x)", "a call"),
        ("__import__('os').system('x')", "a call"),
        ("x.real", "an attribute"),
        ("x[0]", "a subscript"),
        ("x < y", "a comparison"),
        ("x == y", "a comparison"),
        ("'x'", "'x', which is no integer"),
        ("1.5*x", "1.5, which is no integer"),
        ("1e3", "1000.0, which is no integer"),
        ("2j", "2j, which is no integer"),
        ("True + x", "True, which is no integer"),
        ("...", "Ellipsis, which is no integer"),
        ("x % y", "taken modulo m already"),
        ("x // y", "/ is the division modulo m"),
        ("x | y", "BitOr"),
        ("x << 3", "LShift"),
        ("x @ y", "MatMult"),
        ("~x", "Invert"),
        ("not x", "Not"),
        ("x and y", "And"),
        ("x if y else 1", "a condition that is no comparison of two values"),
        ("x if y % 2 else 1", "a condition that is no comparison of two values"),
        ("x if 0 < y < 3 else 1", "a condition that is no comparison of two values"),
        ("x if y == 1 or x == 1 else 1", "a condition that is no comparison of two values"),
        ("x if y in x else 1", "a condition that is no comparison of two values"),
        ("x if y % 0 == 1 else 1", "a remainder % outside a condition"),
        ("x if y % x == 1 else 1", "a remainder % outside a condition"),
        ("x if (y % 2) * x == 1 else 1", "a remainder % outside a condition"),
        ("x if y == 1 else y % 2", "a remainder % outside a condition"),
        ("x if y == z else 1", "unknown variable 'z'"),
        ("x if y == 1 else f(y)", "a call"),
        ("(x < y) + 1", "a comparison outside a condition"),
        ("lambda: x", "Lambda"),
        ("(x := 1)", "NamedExpr"),
        ("[x]", "List"),
        ("x, y", "Tuple"),
        ("[x for x in y]", "ListComp"),
        ("f'{x}'", "JoinedStr"),
        ("*x", "not well formed"),
        ("q + x", "unknown variable 'q'"),
        ("X", "unknown variable 'X'; allowed are integers, the variables x, y"),
        ("xy", "x*y"),
        ("__class__", "unknown variable '__class__'"),
        ("2x", "not well formed"),
        ("x +", "not well formed"),
        ("(x", "not well formed"),
        ("x = y", "not well formed"),
        ("x; y", "not well formed"),
        ("import os", "not well formed"),
        ("1or x", "Or"),
        ("x^^2", "not well formed"),
        ("x\0y", "not well formed"),
        ("x # y", "'#'"),
        ("x × y", "'×'"),
        ("ｘ", "the character 'ｘ'"),
        ("x\ud800", "the character"),
        ("x^10001", "integer from 0 to 10000"),
        ("x^999999999999", "integer from 0 to 10000"),
        ("x^9^9^9^9", "integer from 0 to 10000"),
        ("x^10000^10000", "integer from 0 to 10000"),
        ("x^y", "integer from 0 to 10000"),
        ("2^x", "integer from 0 to 10000"),
        ("x^-1", "1/x is the inverse"),
        ("x^(1+1)", "integer from 0 to 10000"),
        ("x^True", "integer from 0 to 10000"),
        ("x^0.5", "integer from 0 to 10000"),
        ("x" + "+x" * 100, "201 characters"),
        ("(" * 90 + "x" + ")" * 90, None),  # parentheses leave no nodes
        ("-" * 60 + "x", "nested deeper than the 50 levels"),
        ("x" + "+x" * 60, "nested deeper"),
        ("9" * 200, None),
        ("(" * 199 + "x", "not well formed"),
    ],
)
def test_everything_else_is_one_sentence(text: object, words: str | None) -> None:
    if words is None:
        parse(text, XY, 7)  # type: ignore[arg-type]
        return
    with pytest.raises(InputError) as error:
        parse(text, XY, 7)  # type: ignore[arg-type]
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_message_shows_the_quotes() -> None:
    with pytest.raises(InputError) as error:
        parse("x^", XY, 7)
    assert """task.expression="'x^2+y'\"""" in str(error.value)


@pytest.mark.parametrize("modulus", [0, 1, -5, 4097, 2.0, True, "7", None])
def test_the_modulus(modulus: object) -> None:
    with pytest.raises(InputError, match="integer from 2 to 4096"):
        parse("x", XY, modulus)  # type: ignore[arg-type]


def test_one_array_a_variable() -> None:
    with pytest.raises(ValueError, match="zip"):
        parse("x", XY, 7).evaluate([np.arange(7)])


@settings(max_examples=500, deadline=None)
@given(
    st.text(max_size=210)
    | st.text("xy0123456789+-*/^() ", max_size=60)
    | st.lists(st.sampled_from(["x", "y", "(", ")", "^", "**", "9", "/", "-", "%", ".", "lambda", " if ", "'"])).map(
        "".join
    )
)
@example("(" * 200)
@example("-" * 199 + "x")
@example("9^" * 99 + "9")
@example("0" * 100)
@example("0_0__0")
@example("1if x else y")
def test_random_text_never_crashes(text: str) -> None:
    try:
        parsed = parse(text, XY, 6)
    except InputError:
        return
    values, defined = parsed.evaluate(list(np.indices((6, 6))))
    assert values.shape == defined.shape == (6, 6)
    assert values.min() >= 0
    assert values.max() < 6


def test_the_parity_task_of_the_literature() -> None:
    """x/y for odd y, else x − y, modulo 97; it is defined on every pair, although x/0 is not."""
    x, y = np.meshgrid(np.arange(97), np.arange(97), indexing="ij")
    labels, defined = parse("x/y if y % 2 == 1 else x-y", XY, 97).evaluate([x, y])
    assert defined.all()
    odd = y % 2 == 1
    assert np.array_equal(labels[odd] * y[odd] % 97, x[odd])
    assert np.array_equal(labels[~odd], (x - y)[~odd] % 97)
