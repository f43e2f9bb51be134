"""Fig. 9: the deeper the network, the later it generalizes; its lowest layer has Fourier features all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow

DEPTHS = [0, 1, 2]


def test_the_delay_grows_with_depth(sweep: Callable[[str], Sweep]) -> None:
    """Every seed: half as long again with each layer, while memorizing takes about as long."""
    table = sweep("fig09_depth_quick").table
    assert sorted(table["seed"].unique()) == [0, 1, 2]
    for _, rows in table.groupby("seed"):
        rows = rows.sort_values("network.hidden_layers")
        assert rows["network.hidden_layers"].tolist() == DEPTHS
        steps = rows["outcome/first_step/test/0.9"].tolist()
        assert steps[1] >= 1.5 * steps[0]
        assert steps[2] >= 1.5 * steps[1]
        assert rows["outcome/first_step/train/0.99"].max() <= 100


def test_the_lowest_features_are_fourier_features(sweep: Callable[[str], Sweep]) -> None:
    runs = sweep("fig09_depth_quick").runs
    for run in runs:
        purity = run.metrics["features/purity"]
        assert purity.iloc[0] < 0.25
        assert purity.iloc[-1] > 0.45
