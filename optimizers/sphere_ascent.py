"""Gradient steps on the unit sphere, every node by itself: the ascent recipe of the theory as an optimizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from li2_lightning.errors import InputError
from optimizers.closures import ClosureOptimizer
from optimizers.layouts import input_axis, layouts_of, matrices


class SphereAscent(ClosureOptimizer):
    """w ← normalize(w + lr·d/⟨w, d⟩) for every column w of a matrix (inputs × nodes), d = −∂L/∂w.

    Where the network declares a parameter as outputs × inputs, its nodes are the rows; where it declares several
    matrices in one parameter, a node has a w in each (`optimizers.layouts`).

    The first step begins at w/‖w‖. Where the loss is minus a function E that is homogeneous in each column, this climbs
    E on the sphere at a pace that does not depend on its scale, each column by itself. A column whose ⟨w, d⟩ is not
    positive is normalized and does not move.

    It is not registered, because it cannot keep the contract: columns of unit norm do not minimize an arbitrary loss.
    Name it by its import path, ``optimizers.sphere_ascent:SphereAscent``.

    Args:
        params: real matrices, inputs × nodes.
        lr: the step t, in units of the column's norm.

    Raises:
        InputError: a parameter that is no real matrix, or a negative step.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.25) -> None:
        if not lr >= 0:
            raise InputError(f"lr={lr} of SphereAscent is out of range; it must be at least 0.")
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2 or p.is_complex():
                    raise InputError(f"SphereAscent takes real matrices; {tuple(p.shape)} {p.dtype} is none.")

    @torch.no_grad()
    def update(self) -> None:
        for group in self.param_groups:
            for p, layout in zip(group["params"], layouts_of(group), strict=True):
                if p.grad is not None:
                    for W, gradient in zip(matrices(p, layout), matrices(p.grad, layout), strict=True):
                        _ascend(W, gradient, group["lr"], input_axis(layout))


def _ascend(W: Tensor, gradient: Tensor, lr: float, axis: int) -> None:
    w = _normalized(W, axis)
    outwards = -(w * gradient).sum(dim=axis, keepdim=True)
    pace = torch.where(outwards > 0, lr / outwards, 0)
    W.copy_(_normalized(w - pace * gradient, axis))


def _normalized(W: Tensor, axis: int) -> Tensor:
    """Every node's weights, which lie along ``axis``, divided by their norm; a node of zeros stays."""
    norms = torch.linalg.vector_norm(W, dim=axis, keepdim=True)
    return W / torch.where(norms > 0, norms, 1)
