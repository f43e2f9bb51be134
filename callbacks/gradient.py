"""The backpropagated gradient G_F: its norm, and whether it drives each node alone or all nodes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from callbacks.diagnostic import Cadence, Diagnostic, positive_integer
from callbacks.registry import CALLBACKS
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.theory.interaction import node_coupling


@CALLBACKS.register("gradient")
class Gradient(Diagnostic):
    """Columns (all dimensionless but the norm; formulas in `li2_lightning.theory.interaction`):

    ==================================  =====================================================================
    gradient/norm                       ‖G_F‖ (Frobenius)
    gradient/independence               cos(G_F, ỸỸᵀF̃): 1 = every node learns on its own
    gradient/coupling                   cos(G_F, RRᵀF̃): 1 = the residual drives the nodes together
    gradient/residual_alignment         cos(R, Ỹ)
    gradient/readout_alignment          cos(V, F̃ᵀỸ)
    gradient/readout_equilibrium        cos(V, F̃ᵀR)
    gradient/effective_ridge            η̂ = ‖β F̃ᵀR‖/‖V‖; settles at nλ/2 under coupled weight decay
    gradient/node_coupling              median |cos| of fixed random pairs of columns of G_F; every 10 rows
    ==================================  =====================================================================

    With an output scale β the readout is βV throughout, and η̂ is that of V itself, so that nλ/2 stays its limit.

    Args:
        every_n_steps: cadence of all columns but node_coupling.
        pairs: number of pairs in node_coupling; the pairs are drawn once, from a fixed seed.
        pairs_every_n_steps: cadence of node_coupling.
    """

    takes_stacks = True

    def __init__(self, every_n_steps: int | str = 1, pairs: int = 500, pairs_every_n_steps: int | str = 10) -> None:
        super().__init__(every_n_steps)
        self.num_pairs = positive_integer("gradient.pairs", pairs)
        self.pairs_cadence = Cadence("gradient.pairs_every_n_steps", pairs_every_n_steps)
        self._drawn: Tensor | None = None

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        structure = state.structure
        return {
            "gradient/norm": structure.norm,
            "gradient/independence": structure.independence,
            "gradient/coupling": structure.coupling,
            "gradient/residual_alignment": structure.residual_alignment,
            "gradient/readout_alignment": structure.readout_alignment,
            "gradient/readout_equilibrium": structure.readout_equilibrium,
            "gradient/effective_ridge": state.output_scale**2 * structure.effective_ridge,
        }

    def measure_pairs(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        """The column of the pairs, which has a cadence of its own."""
        coupling = node_coupling(state.readout, state.residual_gram, self._pairs(state.readout))
        return {"gradient/node_coupling": coupling}

    def act(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        super().act(trainer, module, state)
        if self.pairs_cadence.due(state.step, state.is_last):
            state.log_all(self.measure_pairs(module, state))

    @classmethod
    def on_stack_state(
        cls, callbacks: Sequence[Gradient], modules: Sequence[Li2Module], whole: StepState, states: Sequence[StepState]
    ) -> None:
        first, row = callbacks[0], (whole.step, whole.is_last)
        due = [callback.cadence.due(*row) for callback in callbacks]
        cls.log_stack(first.measure, modules[0], whole, states, due)
        pairs = [is_due and callback.pairs_cadence.due(*row) for callback, is_due in zip(callbacks, due, strict=True)]
        cls.log_stack(first.measure_pairs, modules[0], whole, states, pairs)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "pairs_last_row": self.pairs_cadence.last_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.pairs_cadence.last_row = state_dict["pairs_last_row"]

    def _pairs(self, readout: Tensor) -> Tensor:
        """Pairs of different nodes, P×2, the same in every row and in every run of this width."""
        if self._drawn is None or self._drawn.device != readout.device:
            K = readout.shape[-2]
            draw = torch.Generator().manual_seed(0)
            left = torch.randint(K, (self.num_pairs,), generator=draw)
            right = (left + 1 + torch.randint(max(K - 1, 1), (self.num_pairs,), generator=draw)) % K
            self._drawn = torch.stack([left, right], dim=1).to(readout.device)
        return self._drawn
