"""The activations σ that the theory is written for, with their derivatives and degrees of homogeneity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from li2_lightning.plugins import Registry

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise σ.

    Attributes:
        name: the value of ``network.activation``.
        function: σ for real arguments.
        derivative: σ' for real arguments (at a kink the value of torch's autograd).
        degree: k where σ(cz) = cᵏσ(z) for every c > 0, else None.
        polynomial: whether σ is one; a polynomial acts on complex numbers directly, every other σ acts on the real and
            the imaginary part separately, σ(a + ib) = σ(a) + iσ(b).
        fused: σ'(z)·g from (g, z) in one pass over memory; None where torch has no such function.
        in_place: σ that writes its result over its argument; None where torch has no such function.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    degree: int | None = None
    polynomial: bool = False
    fused: Callable[[Tensor, Tensor], Tensor] | None = None
    in_place: Callable[[Tensor], Tensor] | None = None

    def __call__(self, z: Tensor) -> Tensor:
        if z.is_complex() and not self.polynomial:
            return torch.complex(self.function(z.real), self.function(z.imag))
        return self.function(z)

    def overwrite(self, z: Tensor) -> None:
        """Replace z by σ(z); z is real, or complex where σ is a polynomial."""
        if self.in_place is not None:
            self.in_place(z)
        else:
            z.copy_(self.function(z))

    def backward(self, z: Tensor, gradient: Tensor) -> Tensor:
        """∂L/∂z = σ'(z)·∂L/∂F for real z, with ``gradient`` = ∂L/∂F, which may be overwritten."""
        if self.fused is not None:
            return self.fused(gradient, z)
        return gradient.mul_(self.derivative(z))


def _gelu_derivative(z: Tensor) -> Tensor:
    cumulative = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return cumulative + z * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _silu_derivative(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


ACTIVATIONS: Registry[Activation] = Registry("activation", "li2_lightning.activations", makes=Activation)

for _activation in (
    Activation(
        "square",
        lambda z: z * z,
        lambda z: 2 * z,
        degree=2,
        polynomial=True,
        fused=lambda gradient, z: torch.addcmul(gradient.new_zeros(()), gradient, z, value=2, out=gradient),
        in_place=lambda z: z.mul_(z),
    ),
    Activation(
        "relu",
        functional.relu,
        lambda z: (z > 0).to(z.dtype),
        degree=1,
        fused=lambda gradient, z: aten.threshold_backward(gradient, z, 0),
        in_place=torch.relu_,
    ),
    Activation("relu_squared", lambda z: functional.relu(z).square(), lambda z: 2 * functional.relu(z), degree=2),
    Activation("silu", functional.silu, _silu_derivative, fused=aten.silu_backward, in_place=aten.silu_),
    Activation("tanh", torch.tanh, lambda z: 1 - torch.tanh(z).square(), in_place=torch.tanh_),
    Activation("sigmoid", torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z)), in_place=torch.sigmoid_),
    Activation("gelu", functional.gelu, _gelu_derivative, fused=aten.gelu_backward, in_place=aten.gelu_),
    Activation("identity", lambda z: z, torch.ones_like, degree=1, polynomial=True, in_place=lambda z: z),
    Activation("linear+quadratic", lambda z: z + z * z, lambda z: 1 + 2 * z, polynomial=True),
):
    ACTIVATIONS.register(_activation.name)(_activation)


def find_activation(name: str) -> Activation:
    """The activation called ``name``; an unknown name is an `InputError` that lists all names."""
    activation: Activation = ACTIVATIONS.check(name, ACTIVATIONS.find(name))
    return activation
