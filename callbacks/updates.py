"""Norms of the weights, and the size and direction of their updates."""

from __future__ import annotations

from collections import Counter
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from callbacks.diagnostic import Diagnostic
from callbacks.registry import CALLBACKS
from li2_lightning.cadence import is_marked
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.runs.metrics_csv import correct_row
from li2_lightning.theory.updates import WINDOW, eigengap


@CALLBACKS.register("updates")
class Updates(Diagnostic):
    """Norms of the weights, and the last single update X_{t−1} → X_t; row 0 has no update.

    ==================================  ==============================================================
    weights/hidden_norm, output_norm    ‖W‖, ‖V‖ (Frobenius, over every matrix of the role)
    optimizer/<role>_lr                 learning rate of the next update; where the optimizer of a role has several
                                        parameter groups, of the first group
    optimizer/<role>_lr/<i>             learning rate of its further groups, i = 1, 2, …
    update/hidden, update/output        ‖X_t − X_{t−1}‖/‖X_{t−1}‖
    update/…_cosine_distance            1 − cos(X_t, X_{t−1})
    update/eigengap                     2nd over 3rd eigenvalue of the Gram matrix of the last 20 updates
                                        of the hidden role; empty before row 20
    ==================================  ==============================================================

    X is W for ``hidden`` and V for ``output``; several hidden matrices count as one vector. With rows further apart
    than one step, the window has the single updates that led to the last 20 rows.

    Args:
        every_n_steps: cadence of the columns; updates are recorded at every row.
    """

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)
        self._before: dict[str, tuple[Tensor, Tensor]] = {}  # role → the vector and its norm
        # A ring buffer; an update is never written to, so a saved row may share its memory.
        self._window: list[Tensor] = []
        self._gram = torch.zeros(WINDOW, WINDOW, dtype=torch.float64)
        self._count = 0
        self._step_of_before = -1
        self._after: dict[str, tuple[Tensor, Tensor]] = {}
        self._changes: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Li2Module, optimizer: Any) -> None:
        # With rows further apart than one step only this hook sees the weights one update before a row, including a V
        # that was just solved as a ridge readout.
        step = trainer.global_step
        row_follows = is_marked(pl_module.evaluate_every_n_steps, step + 1) or pl_module.is_last_update
        if row_follows and self._step_of_before != step:
            self._remember(_with_norms(pl_module), step)

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        self._after = _with_norms(module)
        self._changes = self._follow(state) if self._step_of_before == state.step - 1 >= 0 else {}
        super().on_step_state(trainer, module, state)
        self._remember(self._after, state.step)

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        columns: dict[str, Tensor | float] = {}
        for role, (_, norm) in self._after.items():
            columns[f"weights/{role}_norm"] = norm
        columns.update(_learning_rates(module.optimizer))
        columns.update(self._changes)
        return columns

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "window": tuple(self._window), "gram": self._gram, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._window, self._gram, self._count = list(state_dict["window"]), state_dict["gram"], state_dict["count"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Li2Module) -> None:
        # A resumed run has measured this row before; the next update starts at its weights.
        if pl_module.last_row == trainer.global_step:
            self._remember(_with_norms(pl_module), trainer.global_step)
            # A run with a longer max_steps has another schedule, so the next learning rate may differ from the row's.
            correct_row(trainer, pl_module.last_row, _learning_rates(pl_module.optimizer))

    def _remember(self, vectors: dict[str, tuple[Tensor, Tensor]], step: int) -> None:
        for role, (vector, norm) in vectors.items():
            if role in self._before:
                self._before[role] = self._before[role][0].copy_(vector), norm
            else:
                self._before[role] = vector.clone(), norm
        self._step_of_before = step

    def _follow(self, state: StepState) -> dict[str, Tensor]:
        columns = {}
        for role, (after, norm) in self._after.items():
            before, norm_before = self._before[role]
            change = after - before
            size = torch.linalg.vector_norm(change)
            columns[f"update/{role}"] = size / norm_before
            columns[f"update/{role}_cosine_distance"] = _cosine_distance(norm_before, norm, size)
            if role == "hidden":
                columns["update/eigengap"] = self._eigengap(change, state)
        return columns

    def _eigengap(self, change: Tensor, state: StepState) -> Tensor:
        """Replace the oldest update by the newest, in the window and in the Gram matrix, and return the eigengap."""
        self._window = [update.to(change.device) for update in self._window]
        self._gram = self._gram.to(change.device, state.accumulation_dtype)
        slot = self._count % WINDOW
        self._window[slot : slot + 1] = [change]
        # Each update is its own tensor, not a row of a matrix, so that a checkpoint can keep it without a copy.
        products = torch.stack([update @ change for update in self._window]).to(state.accumulation_dtype)
        self._gram[slot, : len(products)], self._gram[: len(products), slot] = products, products
        self._count += 1
        return eigengap(self._gram) if self._count >= WINDOW else change.new_full((), torch.nan)


def _learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """One column for each parameter group with a learning rate."""
    columns: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for group in optimizer.param_groups:
        index, role = seen[group["role"]], group["role"]
        seen[role] += 1
        if (lr := group.get("lr")) is not None:
            columns[f"optimizer/{role}_lr/{index}" if index else f"optimizer/{role}_lr"] = float(lr)
    return columns


def _with_norms(module: Li2Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Role (hidden, output) → all its matrices as one flat real vector, and the norm of that vector."""
    vectors = {}
    roles = module.network.roles()
    for role in ("hidden", "output"):
        flat = [_flat(parameter) for _, parameter in roles[role]]
        vector = flat[0] if len(flat) == 1 else torch.cat(flat)
        vectors[role] = vector, torch.linalg.vector_norm(vector)
    return vectors


def _flat(parameter: Tensor) -> Tensor:
    detached = parameter.detach()
    return (torch.view_as_real(detached) if detached.is_complex() else detached).reshape(-1)


def _cosine_distance(before: Tensor, after: Tensor, change: Tensor) -> Tensor:
    """1 − cos as (‖a−b‖² − (‖a‖−‖b‖)²)/(2‖a‖‖b‖), from norms: 1 minus a float32 cosine is rounding noise below 1e-7."""
    return (change.square() - (before - after).square()).clamp_min(0) / (2 * before * after)
