"""NorMuon: orthogonalized momentum with a learning rate for each output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from li2_lightning.errors import InputError, check_values
from optimizers.closures import ClosureOptimizer
from optimizers.layouts import check_layouts, check_matrices, input_axis, layouts_of, matrices
from optimizers.muon.orthogonalize import Method, coefficients, orthogonalize_each
from optimizers.registry import register

# The root mean square of an update's entries at lr 1: about Adam's.
RMS = 0.2


@register("normuon")
class NorMuon(ClosureOptimizer):
    """Muon whose update is divided, for every output, by the root mean square of its recent entries there.

        m ← βm + (1−β)g        O = UVᴴ,  m = UDVᴴ
        v_o ← β₂v_o + (1−β₂)·mean_i |O_io|²        (o an output, i the inputs)
        Ô_io = O_io/(√v_o + ε)
        W ← (1 − lr·λ)W − lr·0.2·Ô/RMS(Ô).

    So **lr is five times the root mean square of an update's entries**, about Adam's. The network declares the inputs
    of its matrices, and how many there are in a parameter (`optimizers.layouts`); without a declaration a parameter is
    one matrix, inputs × outputs.

    Args:
        params: matrices, or batches of them in the last two dimensions; real or complex.
        lr: ≥ 0.
        weight_decay: λ ≥ 0, decoupled.
        momentum: β in [0, 1).
        beta2: β₂ in [0, 1).
        eps: ε > 0.
        orthogonalization, steps: as for `optimizers.muon.muon.Muon`.

    Raises:
        InputError: a value out of its range, a vector or scalar among ``params``.

    Source: Z. Li et al., "NorMuon: making Muon more efficient and scalable", arXiv:2510.05491, algorithm 1.
    """

    takes_stacks = True  # every matrix is updated by itself (`optimizers.joint`)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-8,
        orthogonalization: Method = "newton_schulz",
        steps: int = 5,
    ) -> None:
        check_values(
            "{} of normuon",
            ("lr", lr, lr >= 0, "at least 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1"),
            ("beta2", beta2, 0 <= beta2 < 1, "at least 0 and below 1"),
            ("eps", eps, eps > 0, "above 0"),
        )
        coefficients(orthogonalization, steps)
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "beta2": beta2, "eps": eps}
        super().__init__(params, {**defaults, "orthogonalization": orthogonalization, "steps": steps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own; vectors are refused."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_matrices("normuon", group)
        except InputError:
            del self.param_groups[-1]
            raise
        if "layouts" in group:
            check_layouts(group)

    @torch.no_grad()
    def update(self) -> None:
        # How to orthogonalize -> each matrix of weights, its momentum, its v, the axis of its inputs and its group.
        updates: dict[tuple[Method, int], list[tuple[Tensor, Tensor, Tensor, int, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for weight, layout in zip(group["params"], layouts_of(group), strict=True):
                if weight.grad is None:
                    continue
                state, axis = self.state[weight], input_axis(layout)
                parts = matrices(weight, layout)
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                    state["v"] = torch.stack([torch.zeros_like(W.abs().mean(dim=axis, keepdim=True)) for W in parts])
                state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                momenta = matrices(state["momentum_buffer"], layout)
                members = updates.setdefault((group["orthogonalization"], group["steps"]), [])
                members += [(W, m, v, axis, group) for W, m, v in zip(parts, momenta, state["v"], strict=True)]
        for how, members in updates.items():
            polar = orthogonalize_each([m for _, m, *_ in members], *how)
            for (W, _, v, axis, group), step in zip(members, polar, strict=True):
                v.lerp_(step.abs().square().mean(dim=axis, keepdim=True), 1 - group["beta2"])
                step /= v.sqrt() + group["eps"]
                length = torch.linalg.matrix_norm(step, keepdim=True)
                step *= math.sqrt(step.shape[-1] * step.shape[-2]) / torch.where(length > 0, length, 1)
                W.sub_(step, alpha=RMS * group["lr"])
