"""Scion: steps of a fixed length in the norm of each layer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from li2_lightning.errors import check_choice, check_values
from optimizers.closures import ClosureOptimizer
from optimizers.layouts import input_axis, layouts_of, matrices
from optimizers.muon.orthogonalize import orthogonalize_each
from optimizers.registry import register

Norm = Literal["spectral", "sign", "node"]
NORMS = ("spectral", "sign", "node")


@register("scion")
class Scion(ClosureOptimizer):
    """Follows the momentum d to the edge of a ball: −L(d) is the matrix of norm 1 that decreases ⟨d, ·⟩ most.

        d ← βd + (1−β)g        W ← (1 − lr·λ)W − lr·L(d)

        norm       L(d) of a matrix with I inputs and O outputs      its norm: the largest change of the output
        spectral   √(O/I)·UVᴴ,  d = UDVᴴ                             RMS, for an input of RMS 1
        sign       sgn(d)/I                                          of an entry, for an input of entries ±1
        node       d_·o/(√I·‖d_·o‖) for every output o               of an entry, for an input of RMS 1

    With λ > 0 all weights end in the ball of radius 1/λ: the source's step γ to a ball of radius ρ is lr = γρ and
    λ = 1/ρ. With λ = 0 it is the source's unconstrained method. A vector follows d/RMS(d), with ``sign`` sgn(d).
    A network declares the inputs of its matrices, and how many there are in a parameter (`optimizers.layouts`).

    Args:
        params: the tensors to train, real or complex.
        lr: ≥ 0, the length of a step in the norm.
        weight_decay: λ ≥ 0, one over the radius of the ball.
        momentum: β in [0, 1); the source's α is 1 − β.
        norm: the source takes ``sign`` for the last layer and ``spectral`` for those before it.
        steps: polynomial steps of the orthogonalization (``newton_schulz``).

    Raises:
        InputError: a value out of its range.

    Source: T. Pethick et al., "Training deep learning models with norm-constrained LMOs", arXiv:2502.07529.
    """

    takes_stacks = True  # every matrix is updated by itself (`optimizers.joint`)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        norm: Norm = "spectral",
        steps: int = 5,
    ) -> None:
        check_choice("norm of scion", norm, NORMS)
        check_values(
            "{} of scion",
            ("lr", lr, lr >= 0, "at least 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1"),
            ("steps", steps, isinstance(steps, int) and steps >= 1, "a whole number from 1 on"),
        )
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "norm": norm, "steps": steps}
        )

    @torch.no_grad()
    def update(self) -> None:
        # Polynomial steps -> each matrix of weights, its momentum and the length of its step.
        spectral: dict[int, list[tuple[Tensor, Tensor, float]]] = {}
        for group in self.param_groups:
            for weight, layout in zip(group["params"], layouts_of(group), strict=True):
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                is_matrix, axis = weight.ndim > 1, input_axis(layout)
                declared = layout if is_matrix else None
                for W, d in zip(matrices(weight, declared), matrices(momentum, declared), strict=True):
                    if is_matrix and group["norm"] == "spectral":
                        length = group["lr"] * math.sqrt(W.shape[-3 - axis] / W.shape[axis])
                        spectral.setdefault(group["steps"], []).append((W, d, length))
                    else:
                        W.sub_(_step(d, group["norm"], axis), alpha=group["lr"])
        for steps, members in spectral.items():
            polar = orthogonalize_each([d for _, d, _ in members], steps=steps)
            for (W, _, length), direction in zip(members, polar, strict=True):
                W.sub_(direction, alpha=length)


def _step(d: Tensor, norm: str, axis: int) -> Tensor:
    """L(d) for the norms ``sign`` and ``node``, and of a vector; ``axis`` is that of the inputs."""
    if norm == "sign":
        return d.sgn() / (d.shape[axis] if d.ndim > 1 else 1)
    if d.ndim > 1:
        inputs = d.shape[axis]
        length = math.sqrt(inputs) * torch.linalg.vector_norm(d, dim=axis, keepdim=True)
    else:
        length = d.abs().square().mean().sqrt()
    return d / torch.where(length > 0, length, 1)
