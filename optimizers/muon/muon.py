"""Muon: momentum whose singular values are all made equal before it is applied."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from li2_lightning.errors import InputError, check_choice, check_values
from optimizers.closures import ClosureOptimizer
from optimizers.layouts import ORIENTATIONS, check_layouts, check_matrices, layouts_of, matrices
from optimizers.layouts import orientation as orientation_of
from optimizers.muon.orthogonalize import Method, Precision, coefficients, orthogonalize_each, working_dtype
from optimizers.registry import register

MomentumStyle = Literal["ema", "heavy_ball"]
Scale = Literal["none", "rms", "spectral", "match_adamw"]
Orientation = Literal["input_output", "output_input"]

# Each scale as a function of (inputs, outputs).
SCALES: dict[str, Callable[[int, int], float]] = {
    "none": lambda inputs, outputs: 1.0,
    "rms": lambda inputs, outputs: math.sqrt(max(inputs, outputs)),
    "spectral": lambda inputs, outputs: math.sqrt(outputs / inputs),
    "match_adamw": lambda inputs, outputs: 0.2 * math.sqrt(max(inputs, outputs)),
}


def update_scale(shape: tuple[int, ...], scale: Scale, orientation: str) -> float:
    """The factor s between lr and the spectral norm of an update; formulas in `Muon`.

    Args:
        shape: (..., inputs, outputs), or (..., outputs, inputs) if ``orientation`` is ``"output_input"``.
    """
    inputs, outputs = shape[-2:] if orientation == "input_output" else (shape[-1], shape[-2])
    return SCALES[scale](inputs, outputs)


@register("muon")
class Muon(ClosureOptimizer):
    """Momentum, orthogonalized: where gradient descent follows UDVᵀ, Muon follows UVᵀ.

    With gradient g and momentum β, an update is

        g ← g + λW                                        (weight decay, coupled)
        m ← βm + (1−β)g        d = βm + (1−β)g  (Nesterov)  or  d = m        (``momentum_style="ema"``)
        m ← βm + g             d = βm + g       (Nesterov)  or  d = m        (``"heavy_ball"``)
        W ← (1 − lr·λ)W                                   (weight decay, decoupled)
        W ← W − lr·s·UVᴴ,      d = UDVᴴ,
        W ← (1 − lr·λ)W                                   (here instead, with ``decay_after_update``).

    The two styles of momentum differ by the constant factor 1−β, which does not change UVᴴ: they take the same
    steps while the momentum is larger than ``eps``.

    **Units.** UVᴴ has spectral norm 1, so without a scale **lr is the spectral norm of an update**: for an input of
    unit length the output changes by lr at most. The scales s read lr in other units:

        none          1                          spectral norm of the update
        rms           √max(inputs, outputs)      root mean square of the update's entries (full rank)
        spectral      √(outputs/inputs)          largest RMS of the output's change, for an input of RMS 1
        match_adamw   0.2·√max(inputs, outputs)  5 × RMS of the entries, about AdamW's: reuse its lr

    Which side of a matrix is its input is declared, never guessed from the shape. The network declares it for each
    parameter, and of how many matrices the parameter is made (`optimizers.layouts`); each of these is orthogonalized
    and scaled by itself. ``orientation`` is for parameters of which nothing is declared: inputs × outputs (forward
    is x @ W) unless ``orientation="output_input"``, the way of ``torch.nn.Linear`` and ``torch.optim.Muon`` (whose
    ``match_rms_adamw`` is ``match_adamw`` and whose ``original`` is the larger of ``none`` and ``spectral``).

    ``split_heads`` makes every attention head of Q, K and V a matrix of its own. The matrix behind the heads stays
    whole, as in the source: it sums over all heads.

    ⟨UVᵀ, G⟩ = tr D ≥ 0: without momentum no update points uphill, and the fixed points are those of gradient descent.

    Args:
        params: matrices, or batches of them in the last two dimensions; real or complex.
        lr: ≥ 0, in the units of ``scale``.
        weight_decay: λ ≥ 0.
        momentum: β in [0, 1).
        nesterov: look one step ahead.
        momentum_style: ``"ema"`` or ``"heavy_ball"``.
        orthogonalization: ``"newton_schulz"``, ``"newton_schulz_scheduled"`` or ``"polar_express"``
            (approximate, matrix products only), or ``"svd"`` (exact); see `orthogonalize`.
        steps: polynomial steps; ``svd`` has none, ``newton_schulz_scheduled`` at most five.
        eps: a momentum of smaller Frobenius norm is not scaled up to full length (not ``svd``).
        precision: what to orthogonalize in: ``"parameter"`` (its own dtype), ``"float32"`` or ``"bfloat16"``.
        scale: ``"none"``, ``"rms"``, ``"spectral"`` or ``"match_adamw"``.
        orientation: ``"input_output"`` or ``"output_input"``; None: as declared.
        split_heads: orthogonalize the declared attention heads one by one.
        decoupled: weight decay acts on the weights (AdamW) rather than through the gradient (Adam).
        decay_after_update: decoupled decay shrinks the update, too, and not only the weights before it.

    Raises:
        InputError: a value out of its range, a vector or scalar among ``params``, a sparse gradient,
            coupled decay after the update, complex weights in bfloat16, an orientation that contradicts a declared one.

    Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); ``match_adamw`` from
    J. Liu et al., "Muon is scalable for LLM training" (2025); ``split_heads`` from GLM-5 (Muon Split),
    arXiv:2602.15763.
    """

    takes_stacks = True  # every matrix is updated by itself (`optimizers.joint`)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        momentum_style: MomentumStyle = "ema",
        orthogonalization: Method = "newton_schulz",
        steps: int = 5,
        eps: float = 1e-7,
        precision: Precision = "parameter",
        scale: Scale = "none",
        orientation: Orientation | None = None,
        split_heads: bool = False,
        decoupled: bool = True,
        decay_after_update: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "momentum_style": momentum_style,
            "orthogonalization": orthogonalization,
            "steps": steps,
            "eps": eps,
            "precision": precision,
            "scale": scale,
            "orientation": orientation,
            "split_heads": split_heads,
            "decoupled": decoupled,
            "decay_after_update": decay_after_update,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own, checked like the constructor's."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except InputError:
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def update(self) -> None:
        """Make the step; matrices of one shape are orthogonalized together."""
        # How to orthogonalize -> each matrix of weights, its direction and its factor.
        updates: dict[Any, list[tuple[Tensor, Tensor, float]]] = {}
        shrink: list[tuple[Tensor, float]] = []
        for group in self.param_groups:
            how = group["orthogonalization"], group["steps"], group["eps"], group["precision"]
            for weight, layout in zip(group["params"], layouts_of(group), strict=True):
                if weight.grad is None:
                    continue
                direction = self._direction(weight, weight.grad, group)
                orientation = orientation_of(layout, group["orientation"])
                pairs = zip(*(matrices(x, layout, group["split_heads"]) for x in (weight, direction)), strict=True)
                for W, d in pairs:
                    factor = -group["lr"] * update_scale(tuple(d.shape), group["scale"], orientation)
                    updates.setdefault(how, []).append((W, d, factor))
                if group["weight_decay"] and group["decay_after_update"]:
                    shrink.append((weight, 1.0 - group["lr"] * group["weight_decay"]))
        for how, members in updates.items():
            polar = orthogonalize_each([d for _, d, _ in members], *how)
            for (W, _, factor), step in zip(members, polar, strict=True):
                W.add_(step, alpha=factor)
        for weight, factor in shrink:
            weight.mul_(factor)

    def _direction(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """The momentum to orthogonalize; decoupled decay that comes before the update is made here."""
        if gradient.is_sparse:
            raise InputError("Muon needs dense gradients and got a sparse one; build the embedding dense.")
        lr, decay, beta = group["lr"], group["weight_decay"], group["momentum"]
        if decay and not group["decoupled"]:
            gradient = gradient.add(weight, alpha=decay)
        share = 1.0 if group["momentum_style"] == "heavy_ball" else 1.0 - beta
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"].mul_(beta).add_(gradient, alpha=share)
        direction: Tensor = beta * momentum + share * gradient if group["nesterov"] else momentum
        if decay and group["decoupled"] and not group["decay_after_update"]:
            weight.mul_(1.0 - lr * decay)
        return direction


def _check(group: dict[str, Any]) -> None:
    check_matrices("Muon", group)
    steps = group["steps"]
    check_values(
        "Muon's {}",
        ("lr", group["lr"], group["lr"] >= 0, "at least 0"),
        ("weight_decay", group["weight_decay"], group["weight_decay"] >= 0, "at least 0"),
        ("momentum", group["momentum"], 0 <= group["momentum"] < 1, "at least 0 and below 1"),
        ("eps", group["eps"], group["eps"] > 0, "above 0"),
        ("steps", steps, isinstance(steps, int) and steps >= 1, "a whole number from 1 on"),
    )
    check_choice("momentum_style of Muon", group["momentum_style"], ("ema", "heavy_ball"))
    try:
        coefficients(group["orthogonalization"], group["steps"])
        for weight in group["params"]:
            working_dtype(weight.dtype, group["orthogonalization"], group["precision"])
    except InputError as error:
        raise InputError(f"Muon: {error}") from None
    if group["decay_after_update"] and not group["decoupled"]:
        raise InputError("Muon's decay_after_update needs decoupled=true: coupled decay is part of the gradient.")
    check_choice("scale of Muon", group["scale"], SCALES)
    if group["orientation"] is not None:
        check_choice("orientation of Muon", group["orientation"], ORIENTATIONS)
    if "layouts" in group:
        check_layouts(group)
