"""Fig. 9: the deeper the network, the later it generalizes; its lowest layer has Fourier features all the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from li2_lightning.runs.load import Run
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


def rise(run: Run, column: str) -> float:
    """The first row in which a column is .1 above its start."""
    step = run.first_step(column, run.metrics[column].iloc[0] + 0.1)
    return math.inf if step is None else step


def test_lower_layers_have_features_first_and_upper_layers_fit_first(sweep: Callable[[str], Sweep]) -> None:
    """What the nodes tell of the label becomes pure in layer 1 first; the last layer separates the classes most."""
    for run in sweep("fig09_depth_quick").runs:
        layers = range(1, run["network.hidden_layers"] + 2)
        if len(layers) == 2:
            assert rise(run, "features/1/label_purity") < rise(run, "features/2/label_purity")
        shares = [run.metrics[f"features/{layer}/label_share"][60] for layer in layers]
        assert shares == sorted(shares)


def test_the_lowest_features_are_fourier_features(sweep: Callable[[str], Sweep]) -> None:
    runs = sweep("fig09_depth_quick").runs
    for run in runs:
        purity = run.metrics["features/purity"]
        assert purity.iloc[0] < 0.25
        assert purity.iloc[-1] > 0.45
