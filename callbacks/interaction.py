"""Whether the nodes that are most alike push each other away (Theorem 6)."""

from __future__ import annotations

from typing import Any

import lightning
from torch import Tensor

from callbacks.diagnostic import Diagnostic, positive_integer
from callbacks.registry import CALLBACKS
from callbacks.stages import no_equilibrium
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.theory.lazy import center
from li2_lightning.theory.repulsion import most_similar_pairs, repulsion
from li2_lightning.theory.stages import Transition


@CALLBACKS.register("interaction")
class Interaction(Diagnostic):
    """Columns (dimensionless), over the ``pairs`` pairs with the largest positive cos(f̃_j, f̃_l):

    ==========================  ==========================================================================
    interaction/repelled_share  share with b_jl < 0, where B = (F̃ᵀF̃+ηI)⁻¹: the two repel each other
    interaction/repulsion       −mean of b_jl/√(b_jj b_ll): how strongly
    ==========================  ==========================================================================

    η is the strength of the ridge readout where V is solved; nλ/2 where its equilibrium is a ridge readout, with a
    squared loss and coupled decay λ of V; else the η̂ of this row (``gradient/effective_ridge``).

    Both need a Cholesky factor of the smaller of n and K, in float64, so they cost many training steps: they stand in
    row 0, at the cadence, in the last row, and in the first row after a transition of the stages was declared, which is
    by one step later than the row that declared it (on an accelerator by a few).

    Args:
        every_n_steps: cadence.
        pairs: how many pairs.
    """

    needs_float64 = True

    def __init__(self, every_n_steps: int = 100, pairs: int = 200) -> None:
        super().__init__(every_n_steps)
        self.num_pairs = positive_integer("interaction.pairs", pairs)
        self._transition = False

    def on_stage_transition(self, trainer: lightning.Trainer, module: Li2Module, transition: Transition) -> None:
        self._transition = True

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        if self.cadence.due(state.step, state.is_last) or self._transition:
            self._transition = False
            for name, value in self.measure(module, state).items():
                state.log(name, value)

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        F = state.features
        F = center(F.to(state.accumulation_dtype.to_complex() if F.is_complex() else state.accumulation_dtype))
        share, strength = repulsion(F, ridge(module, state), most_similar_pairs(F, self.num_pairs))
        return {"interaction/repelled_share": share, "interaction/repulsion": strength}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "transition": self._transition}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._transition = state_dict["transition"]


def ridge(module: Li2Module, state: StepState) -> Tensor | float:
    """η of the ridge equilibrium of the readout βV, as a function of F̃: that of V itself over β²."""
    beta = module.network_config.output_scale
    if module.ridge is not None:
        return module.ridge / beta**2
    decay = output_decay(module)
    if decay > 0 and no_equilibrium(module) is None:
        return len(state.targets) * decay / 2 / beta**2
    return state.structure.effective_ridge


def output_decay(module: Li2Module) -> float:
    """λ of V; 0 where its optimizer takes no weight decay."""
    groups = [group for group in module.optimizer.param_groups if group["role"] == "output"]
    return float(groups[0].get("weight_decay", 0.0)) if groups else 0.0
