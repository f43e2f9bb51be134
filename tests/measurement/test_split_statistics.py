"""Row statistics: the same however the rows are divided."""

from __future__ import annotations

import pytest
import torch

from li2_lightning.measurement.split_statistics import RowStatistics

LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1])
OUTPUTS = torch.tensor(
    [[3.0, 1, 2], [0, 5, 1], [9, 0, 1], [0, 0, 1], [1, 0, 0], [2, 1, 0], [0, 4, 1]], dtype=torch.float64
)  # hits: rows 0, 1, 3, 5, 6
LOSSES = torch.tensor([0.5, 1, 2, 4, 8, 16, 32], dtype=torch.float64)


def statistics(*parts: slice) -> RowStatistics:
    metric = RowStatistics()
    for part in parts:
        metric.update(LOSSES[part], OUTPUTS[part], LABELS[part])
    return metric


def test_loss_and_accuracy_are_means_over_rows() -> None:
    values = statistics(slice(None)).compute()
    assert values["loss"].item() == pytest.approx(63.5 / 7, rel=1e-12)
    assert values["accuracy"].item() == pytest.approx(5 / 7, rel=1e-6)


def test_unequal_batches_add_up_to_the_whole() -> None:
    whole, parts = statistics(slice(None)).compute(), statistics(slice(0, 1), slice(1, 6), slice(6, 7)).compute()
    assert parts["loss"] == whole["loss"]
    assert parts["accuracy"] == whole["accuracy"]


def test_ranks_are_added_by_their_sums() -> None:
    """What distributed reduction does: every state is declared a sum."""
    left, right = statistics(slice(0, 2)), statistics(slice(2, 7))
    assert set(left._reductions) == {"loss_sum", "hits", "rows"}
    for name in left._reductions:
        setattr(left, name, torch.stack([getattr(left, name), getattr(right, name)]).sum())
    assert left.compute()["loss"].item() == pytest.approx(63.5 / 7, rel=1e-12)


@pytest.mark.parametrize(("hits", "rows"), [(9, 10), (7, 10), (1, 10), (99, 100), (1, 2)])
def test_an_accuracy_of_exactly_a_threshold_reaches_it(hits: int, rows: int) -> None:
    """Nine of ten is ≥ .9: in float32 it would be .8999999762."""
    metric = RowStatistics()
    outputs = torch.eye(2)[(torch.arange(rows) >= hits).long()]
    metric.update(torch.zeros(rows), outputs, torch.zeros(rows, dtype=torch.int64))
    assert float(metric.compute()["accuracy"]) >= hits / rows


def test_reset_forgets() -> None:
    metric = statistics(slice(None))
    metric.reset()
    metric.update(LOSSES[:1], OUTPUTS[:1], LABELS[:1])
    assert metric.compute()["loss"] == 0.5
