"""Sums over the features of a row, accumulated block by block, so that the features are never stored whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class FeatureSums:
    """Sums of two passes over this rank's rows of F (a `li2_lightning.networks.kernel.Observer`).

    The first pass gives YᵀF and Σ_i |f_ij|²; the second pass gives Fμ̄ and Fᵀδ. The second pass needs μ̄, the mean over
    the rows of all ranks, so `start_second_pass` comes first; a second pass that was not started adds nothing.

    Args:
        targets: labels of the rows (n,).
        num_classes: C.
    """

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        self.targets, self.num_classes = targets, num_classes
        self._first_pass_rows = self._second_pass_rows = 0
        self._class_sums = self._squares = self._weighted_sums = torch.empty(0)
        self._mean: Tensor | None = None
        self._row_weights: Tensor | None = None
        self._projections: list[Tensor] = []

    @torch.no_grad()
    def add_first_pass(self, features: Tensor) -> None:
        """Add the next rows of the first pass, b × K."""
        F = at_least_single(features)
        if self._first_pass_rows == 0:
            self._class_sums = F.new_zeros(self.num_classes, F.shape[1])
            # Blocks are added up and summed over rows at the end, a third of the work of summing each block.
            self._squares = torch.zeros_like(F.real)
        self._class_sums.index_add_(0, self.targets[self._first_pass_rows : self._first_pass_rows + len(F)], F)
        for part in (F.real, F.imag) if F.is_complex() else (F,):
            self._squares[: len(F)].addcmul_(part, part)
        self._first_pass_rows += len(F)

    def start_second_pass(self, mean: Tensor, row_weights: Tensor | None) -> None:
        """Prepare for a second pass over the same rows.

        Args:
            mean: μ̄ (K,), over the rows of all ranks.
            row_weights: δ of this rank's rows (n,); None where Fᵀδ is not needed.
        """
        self._mean, self._row_weights = mean, row_weights
        self._projections, self._weighted_sums, self._second_pass_rows = [], torch.zeros_like(mean), 0

    def row_weights(self) -> Tensor | None:
        """δ as a column, n × 1."""
        return None if self._row_weights is None else self._row_weights[:, None]

    @torch.no_grad()
    def add_second_pass(self, features: Tensor) -> None:
        """Add the next rows of the second pass, b × K."""
        if self._mean is None:
            return
        F = at_least_single(features)
        self._projections.append(F @ self._mean)
        self._second_pass_rows += len(F)

    def add_weighted_sums(self, sums: Tensor) -> None:
        """Add δᵀF of rows of the second pass, 1 × K."""
        self._weighted_sums.add_(sums[0])

    @torch.no_grad()
    def run_second_pass(self, blocks: Iterable[Tensor]) -> None:
        """Make the whole second pass here, where no backward pass made it.

        Args:
            blocks: F of this rank's rows in order, some rows at a time.
        """
        weights = self.row_weights()
        for F in blocks:
            if weights is not None:
                rows = weights[self._second_pass_rows : self._second_pass_rows + len(F)]
                # Real products as in the backward pass: a complex product rounds differently.
                real = torch.view_as_real(F).flatten(1) if F.is_complex() else F
                sums = rows.to(real.dtype).mT @ real
                self.add_weighted_sums(torch.view_as_complex(sums.view(1, -1, 2)) if F.is_complex() else sums)
            self.add_second_pass(F)

    @property
    def class_sums(self) -> Tensor:
        """YᵀF, C × K."""
        return self._class_sums

    def squared_norms(self, dtype: torch.dtype) -> Tensor:
        """Σ_i |f_ij|² of every node, (K,), summed in ``dtype``."""
        return self._squares.sum(dim=0, dtype=dtype)

    @property
    def second_pass_done(self) -> bool:
        """Whether the second pass has covered all rows."""
        return self._mean is not None and self._second_pass_rows == len(self.targets)

    @property
    def projections(self) -> Tensor:
        """Fμ̄, (n,)."""
        return torch.cat(self._projections)

    @property
    def weighted_sums(self) -> Tensor:
        """Fᵀδ, (K,)."""
        return self._weighted_sums


def at_least_single(features: Tensor) -> Tensor:
    """Detached features in at least float32; half precision is too coarse for sums over samples."""
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))
