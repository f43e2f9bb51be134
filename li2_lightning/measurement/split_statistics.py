"""Mean loss and accuracy of a split as a torchmetrics metric; its sums over rows add up over batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from li2_lightning.distributed.collectives import sum_over_ranks
from li2_lightning.measurement.parts import accumulation_dtype


class RowStatistics(Metric):
    """Mean loss and accuracy over rows.

    The states are sums over rows (loss, hits, rows), so the result does not depend on how the rows were
    divided. ``compute`` returns ``{"loss": ..., "accuracy": ...}``; NaN before the first row.

    Args:
        runs: of a stack; every state and result then has a leading axis. None for a single run.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    loss_sum: Tensor
    hits: Tensor
    rows: Tensor

    STATES = ("loss_sum", "hits", "rows")

    def __init__(self, runs: int | None = None) -> None:
        # `add_ranks` sums several metrics in one reduction; torchmetrics would make nine reductions for each metric.
        super().__init__(sync_on_compute=False)
        shape = () if runs is None else (runs,)
        self.add_state("loss_sum", torch.zeros(shape), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Add rows.

        Args:
            losses: per row, (…, n).
            outputs: Ŷ, …×n×C; a hit is a row whose largest output is at its label.
            labels: (…, n).
        """
        self.loss_sum = self.loss_sum + losses.sum(dim=-1)
        self.hits = self.hits + (outputs.max(dim=-1).indices == labels).sum(dim=-1)
        self.rows = self.rows + labels.shape[-1]

    def compute(self) -> dict[str, Tensor]:
        # In float32 9/10 is below .9, and a run with 9 hits in 10 would miss a threshold of .9.
        hits = self.hits.to(accumulation_dtype(self.hits.device))
        return {"loss": self.loss_sum / self.rows, "accuracy": hits / self.rows}


def add_ranks(*metrics: RowStatistics) -> None:
    """Give every metric the sums over all ranks, in one reduction; call it once, before ``compute``."""
    sums = iter(sum_over_ranks(*[getattr(metric, state) for metric in metrics for state in RowStatistics.STATES]))
    for metric in metrics:
        for state in RowStatistics.STATES:
            setattr(metric, state, next(sums))
