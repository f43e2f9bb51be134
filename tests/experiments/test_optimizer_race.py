"""optimizer_race_quick as a user runs it: every optimizer generalizes at its best setting, and no table is unfair.

Slow: 1,080 runs, up to a quarter of an hour on two cores.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import train
from li2_lightning.analysis.race import Entrant, entrants, node_statistics, race_table
from li2_lightning.runs.load import Run
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow
FIELD = {
    "adam", "adamw", "sgd", "muon", "muon_published", "egalitarian", "normuon", "scion", "lion", "soap", "prodigy",
    "schedule_free", "orthogonal_gradient", "slow_gradients", "slow_gradients_control",
}  # fmt: skip
SETTINGS, SEEDS = 24, 3


@pytest.fixture(scope="module")
def runs(sweep: Callable[..., Sweep]) -> list[Run]:
    """Everything that the preset's sweep leaves."""
    return sweep("optimizer_race_quick", diverging=True).runs


@pytest.fixture(scope="module")
def field(runs: Sequence[Run]) -> dict[str, Entrant]:
    return {entrant.label: entrant for entrant in entrants(runs)}


def test_everybody_has_the_same_chances(field: dict[str, Entrant]) -> None:
    assert set(field) == FIELD
    for entrant in field.values():
        assert len(entrant.settings) == SETTINGS
        assert all(len(setting.runs) == SEEDS for setting in entrant.settings), entrant.label


def test_every_optimizer_generalizes_at_its_best_setting_with_every_seed(field: dict[str, Entrant]) -> None:
    assert {label: entrant.best.reached for label, entrant in field.items()} == dict.fromkeys(FIELD, SEEDS)


def test_tuned_optimizers_lie_within_a_factor_of_ten(field: dict[str, Entrant]) -> None:
    """At one setting for all, the presets', they do not: that is what the grids are for."""
    medians = [entrant.best.median for entrant in field.values()]
    assert max(medians) / min(medians) < 10
    untuned = [
        min(setting.median for setting in entrant.settings if setting.values == _smallest(entrant))
        for entrant in field.values()
    ]
    assert statistics.median(untuned) > 3 * statistics.median(medians)


def test_who_has_generalized_has_all_irreps(field: dict[str, Entrant]) -> None:
    """Z31 has 15 of them; with 64 nodes no optimizer gets to .99 without (nearly) each of them."""
    for entrant in field.values():
        for run in entrant.best.runs:
            assert node_statistics(run)["irreps a node"] * 64 >= 13, entrant.label


def test_orthogonal_gradients_under_coupled_decay_learn_nothing(tmp_path: Path) -> None:
    """The control of the preset's AdamW: nothing makes W longer again."""
    accuracies = {}
    for inner, decay in (("adam", 2e-3), ("adamw", 0.1)):
        result = train.run(
            {
                "task": {"order": 31},
                "data": {"train_fraction": 0.5},
                "network": {"width": 64},
                "max_steps": 150,
                "optimizer": {
                    "lr": 0.01,
                    "weight_decay": 2e-3,
                    "hidden": {"name": "orthogonal_gradient", "inner": inner, "weight_decay": decay},
                },
                "output_dir": str(tmp_path),
                "logger": {"mode": "disabled"},
                "trainer": {"threads": 1},
                "callbacks": {name: {"enabled": False} for name in ("report", "pictures", "progress")},
            }
        )
        accuracies[inner] = result.summary["final"]["test/accuracy"]
    assert accuracies["adamw"] > 0.9
    assert accuracies["adam"] < 0.3


def test_the_table_is_whole(runs: Sequence[Run]) -> None:
    table = race_table(runs).set_index("optimizer")
    assert set(table.index) == FIELD
    assert not (table == "–").to_numpy().any()
    assert float(table.loc["adam", "state"]) == pytest.approx(2, abs=0.01)
    assert float(table.loc["sgd", "state"]) == pytest.approx(1, abs=0.01)


def _smallest(entrant: Entrant) -> dict[str, float]:
    """The setting with every value at the lower end of its grid."""
    keys = entrant.settings[0].values
    return {key: min(setting.values[key] for setting in entrant.settings) for key in keys}
