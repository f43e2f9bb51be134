"""Activations: values, derivatives, degrees of homogeneity, and what they do to complex numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from li2_lightning.errors import InputError
from li2_lightning.networks.activations import ACTIVATIONS, Activation, find_activation

POINTS = torch.arange(-20, 21, dtype=torch.float64) / 5
BY_HAND: dict[str, Callable[[float], float]] = {
    "square": lambda z: z * z,
    "relu": lambda z: max(z, 0.0),
    "relu_squared": lambda z: max(z, 0.0) ** 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "gelu": lambda z: z * math.erfc(-z / math.sqrt(2)) / 2,
    "identity": lambda z: z,
    "linear+quadratic": lambda z: z + z * z,
}
POLYNOMIALS = {"square", "identity", "linear+quadratic"}


@pytest.mark.parametrize("name", BY_HAND)
def test_values_are_the_textbook_ones(name: str) -> None:
    expected = torch.tensor([BY_HAND[name](z) for z in POINTS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(find_activation(name)(POINTS), expected, rtol=1e-12, atol=1e-12)


def test_every_activation_is_tested() -> None:
    assert ACTIVATIONS.keys() == BY_HAND.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_the_derivative_is_autograds_at_the_kink_too(name: str) -> None:
    z = POINTS.clone().requires_grad_()
    assert (z == 0).any()
    (expected,) = torch.autograd.grad(find_activation(name)(z).sum(), z)
    torch.testing.assert_close(find_activation(name).derivative(POINTS), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_degree_is_that_of_homogeneity_and_none_only_where_there_is_none(name: str) -> None:
    activation = find_activation(name)
    degrees = [
        k for k in range(5) if torch.allclose(activation(3 * POINTS), 3**k * activation(POINTS), rtol=1e-12, atol=0)
    ]
    assert degrees == ([] if activation.degree is None else [activation.degree])


@pytest.mark.parametrize("name", BY_HAND)
def test_polynomials_act_on_complex_numbers_and_the_others_on_their_parts(name: str) -> None:
    z = torch.complex(POINTS, POINTS.flip(0) * 0.7 + 0.2)
    f = BY_HAND[name]
    if name in POLYNOMIALS:
        expected = [f(value) for value in z.tolist()]
    else:
        expected = [complex(f(value.real), f(value.imag)) for value in z.tolist()]
    torch.testing.assert_close(
        find_activation(name)(z), torch.tensor(expected, dtype=torch.complex128), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_overwriting_gives_the_same_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    activation = find_activation(name)
    for z in [POINTS.to(dtype)] + [torch.complex(POINTS, POINTS.flip(0))] * activation.polynomial:
        expected, place = activation(z), z.clone()
        activation.overwrite(place)
        assert torch.equal(place, expected)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'swuare'; known are gelu, .*Did you mean 'square'\?"):
        find_activation("swuare")


CUBE = Activation("cube", lambda z: z**3, lambda z: 3 * z**2, degree=3, polynomial=True)


@pytest.mark.parametrize("name", ["torch.nn.functional:relu", "builtins:abs"])
def test_a_plug_in_is_found_by_import_path_and_must_be_an_activation(name: str) -> None:
    assert find_activation(f"{__name__}:CUBE") is CUBE
    with pytest.raises(
        InputError, match=rf"^The activation '{name}' gave a \w+, not a li2_lightning\.\S+\.Activation\.$"
    ):
        find_activation(name)
