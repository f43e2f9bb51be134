"""Sums over the features of a row, taken while blocks of them pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class FeatureSums:
    """What two passes over this rank's rows of F add up, a block at a time (`li2_lightning.networks.kernel.Observer`).

    The second pass needs the mean over the rows of all ranks, so it has to be expected; one that is not adds nothing.

    Args:
        targets: labels of the rows (n,).
        num_classes: C.
    """

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        self.targets, self.num_classes = targets, num_classes
        self._rows = 0
        self._classes = self._squares = torch.empty(0)
        self._mean: Tensor | None = None
        self._unseen: Tensor | None = None
        self._projections: list[Tensor] = []
        self._along = torch.empty(0)
        self._rows_again = 0

    @torch.no_grad()
    def look(self, features: Tensor) -> None:
        """The next rows of the first pass, b × K."""
        F = at_least_single(features)
        if self._rows == 0:
            self._classes = F.new_zeros(self.num_classes, F.shape[1])
            # Summed over rows at the end: adding blocks up is a third of the work of summing each.
            self._squares = torch.zeros_like(F.real)
        self._classes.index_add_(0, self.targets[self._rows : self._rows + len(F)], F)
        for part in (F.real, F.imag) if F.is_complex() else (F,):
            self._squares[: len(F)].addcmul_(part, part)
        self._rows += len(F)

    def expect(self, mean: Tensor, unseen: Tensor | None) -> None:
        """A second pass over the same rows follows.

        Args:
            mean: μ̄ (K,), over the rows of all ranks.
            unseen: δ of these rows (n,), or None.
        """
        self._mean, self._unseen = mean, unseen
        self._projections, self._along, self._rows_again = [], torch.zeros_like(mean), 0

    def weights(self) -> Tensor | None:
        """δ as a column, n × 1."""
        return None if self._unseen is None else self._unseen[:, None]

    @torch.no_grad()
    def look_again(self, features: Tensor) -> None:
        """The next rows of the second pass, b × K."""
        if self._mean is None:
            return
        F = at_least_single(features)
        self._projections.append(F @ self._mean)
        self._rows_again += len(F)

    def add(self, products: Tensor) -> None:
        """δᵀF of rows of the second pass, 1 × K."""
        self._along.add_(products[0])

    @torch.no_grad()
    def pass_again(self, blocks: Iterable[Tensor]) -> None:
        """The whole second pass, where no backward pass was one."""
        weights = self.weights()
        for F in blocks:
            if weights is not None:
                rows = weights[self._rows_again : self._rows_again + len(F)]
                # As the backward pass has it: a complex product rounds otherwise than two real ones.
                real = torch.view_as_real(F).flatten(1) if F.is_complex() else F
                along = rows.to(real.dtype).mT @ real
                self.add(torch.view_as_complex(along.view(1, -1, 2)) if F.is_complex() else along)
            self.look_again(F)

    @property
    def classes(self) -> Tensor:
        """YᵀF, C × K."""
        return self._classes

    def squares(self, dtype: torch.dtype) -> Tensor:
        """Σ_i |f_ij|², (K,)."""
        return self._squares.sum(dim=0, dtype=dtype)

    @property
    def passed_twice(self) -> bool:
        """Whether the second pass has been over all rows."""
        return self._mean is not None and self._rows_again == len(self.targets)

    @property
    def projections(self) -> Tensor:
        """Fμ̄, (n,)."""
        return torch.cat(self._projections)

    @property
    def along(self) -> Tensor:
        """Fᵀδ, (K,)."""
        return self._along


def at_least_single(features: Tensor) -> Tensor:
    """Detached, and in float32 where mixed precision left half of that; sums over samples need it."""
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))
