"""Fig. 10 to 13: real weights, complex weights, and a readout solved by ridge regression."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow

SEEDS = list(range(5))


@pytest.fixture
def tables(sweep: Callable[[str], Sweep]) -> dict[str, pd.DataFrame]:
    """The table of each preset, by order and seed."""
    names = {"real": "fig10_real_quick", "complex": "fig11_complex_quick", "ridge": "fig12_ridge_quick"}
    tables = {kind: sweep(name).table.set_index(["task.order", "seed"]).sort_index() for kind, name in names.items()}
    for table in tables.values():
        assert table.index.tolist() == [(order, seed) for order in (23, 41) for seed in SEEDS]
    return tables


def steps(table: pd.DataFrame, order: int, level: str = "0.9") -> pd.Series:
    """The first step of test accuracy ``level``, by seed; every seed gets there."""
    found = table.loc[order, f"outcome/first_step/test/{level}"]
    assert found.notna().all()
    return found


def test_all_three_generalize(tables: dict[str, pd.DataFrame]) -> None:
    for table in tables.values():
        for order in (23, 41):
            steps(table, order, "0.99")


def test_complex_weights_generalize_no_later(tables: dict[str, pd.DataFrame]) -> None:
    """At M=41, every seed, with a lower loss at the end; at M=23 it is not so."""
    assert (steps(tables["complex"], 41) <= steps(tables["real"], 41)).all()
    loss = {kind: tables[kind].loc[41, "outcome/final/test/loss"] for kind in ("complex", "real")}
    assert (loss["complex"] < loss["real"]).all()


def test_the_ridge_readout_is_later_for_the_small_group_and_earlier_for_the_larger(
    tables: dict[str, pd.DataFrame],
) -> None:
    assert steps(tables["ridge"], 23).median() > 1.2 * steps(tables["real"], 23).median()
    assert (steps(tables["ridge"], 41) < steps(tables["real"], 41)).all()
