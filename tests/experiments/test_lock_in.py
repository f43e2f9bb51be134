"""The marker of feature lock-in (arXiv:2605.08119) fires for x² with weight decay, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from li2_lightning.analysis.figures.lock_in import firing_step
from li2_lightning.runs.load import Run
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(sweep: Callable[[str], Sweep]) -> dict[tuple[str, float], list[Run]]:
    found: dict[tuple[str, float], list[Run]] = {}
    for run in sweep("lock_in_quick").runs:
        found.setdefault((run["network.activation"], run["optimizer.weight_decay"]), []).append(run)
    assert {key: len(group) for key, group in found.items()} == {
        (sigma, decay): 2 for sigma in ("square", "relu") for decay in (0.0, 2e-4)
    }
    return found


def test_it_fires_for_squares_with_weight_decay(runs: dict[tuple[str, float], list[Run]]) -> None:
    for run in runs["square", 2e-4]:
        assert firing_step(run) == pytest.approx(174, abs=5)
        generalized = run.first_step("test/accuracy", 0.99)
        assert generalized is not None
        assert generalized < 174, "it lags: test accuracy is .99 before"


@pytest.mark.parametrize(("activation", "decay"), [("square", 0.0), ("relu", 2e-4)])
def test_it_does_not_fire_in_the_controls(
    runs: dict[tuple[str, float], list[Run]], activation: str, decay: float
) -> None:
    """Although ReLU with decay generalizes. (ReLU without decay is no claim: its noise alone has slopes up to .038.)"""
    for run in runs[activation, decay]:
        assert firing_step(run) is None
        assert (run.metrics["test/accuracy"].iloc[-1] > 0.5) == (activation == "relu" and decay > 0)


def test_late_updates_lie_in_a_plane_only_there(runs: dict[tuple[str, float], list[Run]]) -> None:
    for key, group in runs.items():
        late = [run.metrics.loc[200:400, "update/eigengap"].median() for run in group]
        assert min(late) > 100 if key == ("square", 2e-4) else max(late) < 10
