"""Whether the most similar nodes repel each other (Theorem 6 of arXiv:2509.21519)."""

from __future__ import annotations

import math

from torch import Tensor

from callbacks.diagnostic import Diagnostic, positive_integer
from callbacks.registry import CALLBACKS
from callbacks.stages import no_equilibrium
from li2_lightning.errors import InputError
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.theory.interaction import most_similar_pairs, repulsion
from li2_lightning.theory.lazy import center


@CALLBACKS.register("interaction")
class Interaction(Diagnostic):
    """Columns (dimensionless), over the ``pairs`` pairs with the largest positive cos(f̃_j, f̃_l):

    ==========================  ==========================================================================
    interaction/repelled_share  share of pairs with b_jl < 0, which repel each other; B = (F̃ᵀF̃+ηI)⁻¹
    interaction/repulsion       −mean of b_jl/√(b_jj b_ll), the strength of the repulsion
    ==========================  ==========================================================================

    η is the ridge where V is a ridge readout; nλ/2 with a squared loss and coupled weight decay λ of V, whose
    equilibrium is a ridge readout; else the η̂ of this row (``gradient/effective_ridge``).

    The columns need a Cholesky factor of size min(n, K) in float64, which takes as long as many training steps. They
    are in row 0, at the cadence, in the last row, and in the first row after a stage transition was declared (one step
    after the row that declared it; on an accelerator a few steps).

    Args:
        every_n_steps: cadence.
        pairs: number of pairs.
        ridge: another η, for comparison with others' numbers; None for the one above.
    """

    needs_float64 = True
    part = "interaction"
    after_transitions = True

    def __init__(self, every_n_steps: int | str = 100, pairs: int = 200, ridge: float | None = None) -> None:
        super().__init__(every_n_steps)
        self.num_pairs = positive_integer("interaction.pairs", pairs)
        real = isinstance(ridge, int | float) and not isinstance(ridge, bool)
        if ridge is not None and not (real and 0 < ridge < math.inf):
            raise InputError(f"callbacks.interaction.ridge={ridge!r} does not fit; it is a positive number, or null.")
        self.ridge = ridge

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        F = state.features
        F = center(F.to(state.accumulation_dtype.to_complex() if F.is_complex() else state.accumulation_dtype))
        eta = equilibrium_ridge(module, state) if self.ridge is None else self.ridge
        share, strength = repulsion(F, eta, most_similar_pairs(F, self.num_pairs))
        return {"interaction/repelled_share": share, "interaction/repulsion": strength}


def equilibrium_ridge(module: Li2Module, state: StepState) -> Tensor | float:
    """η of the ridge equilibrium of the readout βV on F̃, which is the η of V divided by β²."""
    beta = module.network.config.output_scale
    if module.ridge is not None:
        return module.ridge / beta**2
    decay = output_decay(module)
    if decay > 0 and no_equilibrium(module) is None:
        return len(state.targets) * decay / 2 / beta**2
    return state.structure.effective_ridge


def output_decay(module: Li2Module) -> float:
    """Weight decay λ of V; 0 where the optimizer of V takes none."""
    groups = [group for group in module.optimizer.param_groups if group["role"] == "output"]
    return float(groups[0].get("weight_decay", 0.0)) if groups else 0.0
