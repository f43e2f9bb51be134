"""Fig. 14 to 17: V from zero, and features are learned earlier."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from li2_lightning.runs.load import Run
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow

SCALE, REACHED = "network.readout_init_scale", "outcome/first_step/test/0.9"


def pairs(sweep: Sweep) -> list[tuple[pd.Series, pd.Series, Run, Run]]:
    """For each fraction and seed: the row and run from zero, and those from Linear's default."""
    found = []
    table = sweep.table.assign(run=sweep.runs)
    for _, rows in table.groupby(["data.train_fraction", "seed"]):
        zero, default = (row for _, row in rows.sort_values(SCALE).iterrows())
        assert (zero[SCALE], default[SCALE]) == (0, 1)
        found.append((zero, default, zero["run"], default["run"]))
    return found


@pytest.mark.parametrize(
    ("name", "count"), [("fig14_zero_init_quick", 9), ("fig15_zero_init_quick", 4), ("fig16_zero_init_quick", 4)]
)
def test_from_zero_features_are_learned_earlier(sweep: Callable[[str], Sweep], name: str, count: int) -> None:
    """Every fraction and seed: features ahead early on, accuracy .9 no later; most steps are saved with few data."""
    found = pairs(sweep(name))
    assert len(found) == count
    saved: dict[float, list[float]] = {}
    for zero, default, from_zero, from_default in found:
        for column in ("features/purity", "energy/mean"):
            assert from_zero.metrics[column][0] == pytest.approx(from_default.metrics[column][0]), "W starts the same"
            assert from_zero.metrics[column][10] > from_default.metrics[column][10]
        assert zero[REACHED] <= default[REACHED]
        saved.setdefault(float(zero["data.train_fraction"]), []).append(float(default[REACHED] - zero[REACHED]))
    fewest, most = (sum(saved[key]) / len(saved[key]) for key in (min(saved), max(saved)))
    assert fewest > 1.5 * most > 0


def test_a_deeper_network_from_zero_generalizes_much_earlier(sweep: Callable[[str], Sweep]) -> None:
    found = pairs(sweep("fig17_zero_init_deep_quick"))
    assert len(found) == 3
    for zero, default, _, from_default in found:
        assert zero[REACHED] <= 200
        assert default["outcome/first_step/train/0.99"] <= 200, "memorized, both of them"
        reached = default[REACHED]
        assert (reached if pd.notna(reached) else from_default.metrics.index[-1]) >= 5 * zero[REACHED]
