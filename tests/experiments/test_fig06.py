"""Fig. 6: near the boundary a small learning rate generalizes more often."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.experiments.conftest import Sweep


@pytest.mark.slow
def test_the_learning_rate_decides_near_the_boundary_and_only_there(sweep: Callable[[str], Sweep]) -> None:
    table = sweep("fig06_learning_rate_quick").table
    accuracy = table.set_index(["data.critical_ratio", "optimizer.lr"])["outcome/final/test/accuracy"].sort_index()
    assert len(accuracy) == 36
    assert accuracy.loc[0.75].max() < 0.1
    assert accuracy.loc[1.25].min() > 0.9
    small, large = (accuracy.loc[(0.95, rate)] for rate in (2e-3, 1e-1))
    assert len(small) == len(large) == 3
    assert small.min() > large.max()
    assert small.median() > 0.6
    assert large.max() < 0.5
    assert table["outcome/final/train/accuracy"].min() > 0.9
