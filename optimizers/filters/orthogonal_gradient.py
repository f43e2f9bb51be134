"""A projection before any optimizer: the part of a gradient that only scales a weight is removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from li2_lightning.errors import InputError
from optimizers.filters.named_filter import Inner, NamedFilter
from optimizers.layouts import layouts_of, matrices
from optimizers.registry import register


@register("orthogonal_gradient")
class OrthogonalGradient(NamedFilter):
    """Any optimizer, on gradients without their component along the weight.

    The inner optimizer sees, for every parameter W, instead of the gradient g

        g − (⟨W, g⟩/⟨W, W⟩) W,    ⟨A, B⟩ = Re Σ conj(A_ij) B_ij,    and g itself where W = 0,

    and nothing else changes: ``p.grad`` is what it was, weight decay is the inner optimizer's. In a homogeneous
    network the removed component only scales the outputs and changes no prediction.

    The source states the projection for θ, all parameters as one vector. Here, as in its authors' code, each tensor has
    its own, so that it works for one role alone; a gradient orthogonal to every tensor is orthogonal to θ, too.
    Where the network declares several matrices in one tensor (fused Q, K, V; `optimizers.layouts`), each matrix is a W.
    The authors' code then scales the result up to the length of g; their text does not, nor do we.

    The length of W still changes: a step along the tangent ends a little further out, weight decay shortens W, and
    Adam's scaling of single entries leaves the tangent. But no gradient drives the length to a value. So a problem
    whose solution has a certain length (least squares) may stay unsolved, and the contract's checks on such
    problems fail.

    Args:
        params: the tensors to train.
        inner: name of the optimizer that follows the filtered gradients, or a list (`NamedFilter`).
        hyperparameters: of the inner optimizer.

    Raises:
        InputError: an inner optimizer that cannot be built with its hyperparameters; a weight that is a single number.

    Source: L. Prieto et al., "Grokking at the edge of numerical stability", arXiv:2501.04697 (⊥Grad).
    """

    def __init__(self, params: Sequence[Tensor], inner: Inner = "adam", **hyperparameters: Any) -> None:
        super().__init__(params, inner, hyperparameters)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer."""
        super().add_param_group(param_group)
        if any(weight.numel() == 1 for weight in param_group["params"]):
            raise InputError(
                "orthogonal_gradient got a parameter that is a single number, all of whose gradient it would remove; "
                "give its role another optimizer, for example adam."
            )

    def filtered(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """g − (⟨W, g⟩/⟨W, W⟩) W."""
        layout = next(
            (layout for group in self.param_groups
             for p, layout in zip(group["params"], layouts_of(group), strict=True) if p is weight),
            None,
        )  # fmt: skip
        projected = gradient.clone()
        for matrix, its in zip(matrices(weight, layout), matrices(projected, layout), strict=True):
            W, g = (torch.view_as_real(x) if x.is_complex() else x for x in (matrix, its))
            along, length = (W * g).sum(), W.square().sum()
            # On the device: a branch would wait for the value.
            its.sub_(matrix * torch.where(length > 0, along / length, torch.zeros_like(length)))
        return projected
