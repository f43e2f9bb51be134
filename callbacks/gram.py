"""How far the features are from random features (Lemma 1 and Fig. 3 of arXiv:2509.21519)."""

from __future__ import annotations

import torch
from torch import Tensor

from callbacks.diagnostic import Diagnostic, positive_integer
from callbacks.registry import CALLBACKS
from li2_lightning.errors import InputError
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.theory.lazy import (
    draw_nodes,
    estimated_off_diagonal_sum,
    gram_deviation,
    kernel_deviation,
    off_diagonal_sum,
)


@CALLBACKS.register("gram")
class Gram(Diagnostic):
    """Columns (dimensionless):

    ==========================  ==========================================================================
    features/gram_offdiagonal   mean |off-diagonal entry| of F̃ᵀF̃ over its mean diagonal entry
    features/kernel_distance    min over a, b of ‖FFᵀ − aI − b11ᵀ‖/‖FFᵀ‖
    ==========================  ==========================================================================

    Both need the K×K matrix F̃ᵀF̃, which costs more than the training step. By default they are **estimated** from
    two blocks of the matrix, each of ``sampled_columns`` columns f̃_j of F̃, drawn in proportion to ‖f̃_j‖ (for
    gram_offdiagonal) and to ‖f̃_j‖² (for kernel_distance): `theory.lazy.estimated_off_diagonal_sum`. Error of 96 columns
    out of 2048 in the default run (root mean square of 12 draws against the whole matrix): gram_offdiagonal 1.6 % up to
    row 140 and 4 % at rows 300 and 400, where few nodes are large; kernel_distance 1.1 % in all rows.

    Args:
        every_n_steps: cadence.
        sampled_columns: S, the number of columns in a block; with a width of at most S the whole matrix is used.
        exact: use the whole matrix.
    """

    takes_stacks = True

    def __init__(self, every_n_steps: int | str = 1, sampled_columns: int = 96, exact: bool = False) -> None:
        super().__init__(every_n_steps)
        if not isinstance(exact, bool):
            raise InputError(f"callbacks.gram.exact={exact!r} does not fit; it is true or false.")
        self.sampled_columns = positive_integer("gram.sampled_columns", sampled_columns)
        self.exact = exact
        self._order = torch.empty(0, dtype=torch.int64)

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        norms = state.feature_norms
        if self.exact or self.sampled_columns >= norms.shape[-1]:
            gram = state.gram().abs()
            lengths, squares = off_diagonal_sum(gram), off_diagonal_sum(gram.square())
        else:
            lengths, squares = self._estimate(state, norms)
        mean = state.feature_means.abs().to(state.accumulation_dtype)
        return {
            "features/gram_offdiagonal": gram_deviation(lengths, norms),
            "features/kernel_distance": kernel_deviation(
                squares, norms, mean, state.mean_spread, state.targets.shape[-1]
            ),
        }

    def _estimate(self, state: StepState, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of Σ_{j≠l} |f̃_jᴴf̃_l| and of Σ_{j≠l} |f̃_jᴴf̃_l|², each from its own block of the Gram matrix."""
        if len(self._order) != norms.shape[-1]:
            # A fixed seed, so that every run of this width uses the same order.
            self._order = torch.randperm(norms.shape[-1], generator=torch.Generator().manual_seed(0))
        self._order = self._order.to(norms.device)
        weights = torch.stack([norms.sqrt(), norms], dim=-2)
        nodes = draw_nodes(weights, self._order, self.sampled_columns)
        values = state.gram(nodes).abs()
        values.select(-3, 1).square_()
        lengths, squares = estimated_off_diagonal_sum(values, nodes, weights).unbind(-1)
        return lengths, squares
