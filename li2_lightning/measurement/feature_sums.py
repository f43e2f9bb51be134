"""Sums over the features of a row, accumulated block by block, so that the features are never stored whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from li2_lightning.measurement.parts import accumulation_dtype
from li2_lightning.networks.kernel import Places, piece_rows


class FeatureSums:
    """Sums of two passes over this rank's rows of F (a `li2_lightning.networks.kernel.Observer`).

    The first pass gives YᵀF and Σ_i |f_ij|²; the second pass gives Fμ̄ and Fᵀδ. The second pass needs μ̄, the mean over
    the rows of all ranks, so `start_second_pass` comes first; a second pass that was not started adds nothing.

    Args:
        targets: labels of the rows, (n,); (N, n) for a stack of N runs, whose sums then have a leading axis, too.
        num_classes: C.
    """

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        self.num_classes = num_classes
        self._is_stack = targets.ndim > 1
        self._targets = targets if self._is_stack else targets[None]
        # The sum of squares over rows is taken in this type.
        self._wide = accumulation_dtype(targets.device)
        self._class_sums = self._norms = self._weighted_sums = torch.empty(0)
        self._places = Places(self._targets.shape[1])
        # The sum of the squared pieces of one run, and the place of this run.
        self._squares: Tensor | None = None
        self._run = 0
        self._mean: Tensor | None = None
        self._row_weights: Tensor | None = None
        self._projections = torch.empty(0)
        self._projected = 0

    @torch.no_grad()
    def add_first_pass(self, features: Tensor) -> None:
        """Add the next rows of the first pass: b × K of one run, or g × n × K of the next runs."""
        F = at_least_single(features)
        if not len(self._class_sums):
            self._class_sums = F.new_zeros(len(self._targets), self.num_classes, F.shape[-1])
            self._norms = torch.zeros(len(self._targets), F.shape[-1], dtype=self._wide, device=F.device)
        parts = (F.real, F.imag) if F.is_complex() else (F,)
        runs, rows = self._places.next(F)
        if isinstance(runs, int):
            self._class_sums[runs].index_add_(0, self._targets[runs, rows], F)
            if runs != self._run:
                self._close_run()
                self._run = runs
            rows_of_piece = piece_rows(F.shape[-1], parts[0].element_size())
            if self._squares is None:
                # Pieces are added up and summed over rows at the end, a third of the work of summing each piece.
                self._squares = torch.zeros_like(parts[0][:rows_of_piece])
            for part in parts:
                for piece in torch.split(part, rows_of_piece):
                    self._squares[: len(piece)].addcmul_(piece, piece)
            return
        sums = self._class_sums[runs]
        first = self.num_classes * torch.arange(len(sums), device=F.device)[:, None]
        sums.view(-1, F.shape[-1]).index_add_(0, (self._targets[runs] + first).flatten(), F.flatten(0, 1))
        for part in parts:
            self._norms[runs].add_(part.square().sum(dim=-2))

    def _close_run(self) -> None:
        if self._squares is not None:
            self._norms[self._run].add_(self._squares.sum(dim=0, dtype=self._wide))
            self._squares = None

    @torch.no_grad()
    def start_second_pass(self, mean: Tensor, row_weights: Tensor | None) -> None:
        """Prepare for a second pass over the same rows.

        Args:
            mean: μ̄ (…, K), over the rows of all ranks.
            row_weights: δ of this rank's rows (…, n); None where Fᵀδ is not needed.
        """
        self._mean = mean if self._is_stack else mean[None]
        self._row_weights = row_weights
        self._projections = mean.new_empty(self._targets.shape)
        self._weighted_sums = torch.zeros_like(self._mean)
        self._projected, self._places = 0, Places(self._targets.shape[1])

    def row_weights(self) -> Tensor | None:
        """δ as a column, …×n×1."""
        return None if self._row_weights is None else self._row_weights.unsqueeze(-1)

    @torch.no_grad()
    def add_second_pass(self, features: Tensor) -> None:
        """Add the next rows of the second pass: b × K of one run, or g × n × K of the next runs."""
        if self._mean is None:
            return
        F = at_least_single(features)
        runs, rows = self._places.next(F)
        self._projections[runs, rows] = (F @ self._mean[runs].unsqueeze(-1)).squeeze(-1)
        self._projected += F.shape[:-1].numel()

    def add_weighted_sums(self, sums: Tensor) -> None:
        """Add δᵀF of rows of the second pass, N×1×K."""
        self._weighted_sums.add_(sums[..., 0, :])

    @torch.no_grad()
    def run_second_pass(self, blocks: Iterable[Tensor]) -> None:
        """Make the whole second pass here, where no backward pass made it.

        Args:
            blocks: F of this rank's rows in order, some rows at a time.
        """
        places = Places(self._targets.shape[1])
        for F in blocks:
            runs, rows = places.next(F)
            if self._row_weights is not None:
                weights = self._row_weights.view(self._targets.shape)[runs, rows]
                # Real products as in the backward pass: a complex product rounds differently.
                real = torch.view_as_real(F).flatten(-2) if F.is_complex() else F
                sums = (weights.to(real.dtype).unsqueeze(-2) @ real).squeeze(-2)
                sums = torch.view_as_complex(sums.unflatten(-1, (-1, 2))) if F.is_complex() else sums  # type: ignore[no-untyped-call]
                self._weighted_sums[runs] += sums
            self.add_second_pass(F)

    @property
    def class_sums(self) -> Tensor:
        """YᵀF, …×C×K."""
        return self._class_sums if self._is_stack else self._class_sums[0]

    @torch.no_grad()
    def squared_norms(self) -> Tensor:
        """Σ_i |f_ij|² of every node, (…, K), in float64 (float32 on a device without it)."""
        self._close_run()
        return self._norms if self._is_stack else self._norms[0]

    @property
    def second_pass_done(self) -> bool:
        """Whether the second pass has covered all rows."""
        return self._mean is not None and self._projected == self._targets.numel()

    @property
    def projections(self) -> Tensor:
        """Fμ̄, (…, n)."""
        return self._projections if self._is_stack else self._projections[0]

    @property
    def weighted_sums(self) -> Tensor:
        """Fᵀδ, (…, K)."""
        return self._weighted_sums if self._is_stack else self._weighted_sums[0]


def at_least_single(features: Tensor) -> Tensor:
    """Detached features in at least float32; half precision is too coarse for sums over samples."""
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))
