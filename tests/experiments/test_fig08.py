"""fig08_muon_quick as a user runs it: few nodes, five optimizers of W, and the coverage that Theorem 8 expects.

Slow: see the table of docs/reproduction.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from li2_lightning.analysis.figures.optimizers import DECAY, RATE, WIDTH, Tuned, measured_factor, tuned
from li2_lightning.runs.load import Run
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow
SEEDS, IRREPS = 16, 15
ADAM, ADAMW, COUPLED = "adam", "adamw", "muon, coupled decay"
DECOUPLED, PUBLISHED = "muon, decoupled decay", "muon, decoupled decay, momentum 0.99"


@pytest.fixture(scope="module")
def runs(sweep: Callable[..., Sweep]) -> list[Run]:
    return sweep("fig08_muon_quick", diverging=True).runs


@pytest.fixture(scope="module")
def over_width(runs: list[Run]) -> Tuned:
    return tuned(runs, WIDTH, RATE, DECAY)


def mean(runs: list[Run], column: str) -> float:
    return statistics.mean(run.last(column) for run in runs)


def test_every_optimizer_is_there_at_every_width_with_every_seed(over_width: Tuned) -> None:
    assert set(over_width) == {ADAM, ADAMW, COUPLED, DECOUPLED, PUBLISHED}
    for widths in over_width.values():
        assert tuple(widths) == (12, 20, 32)
        assert all(len({run["seed"] for run in group}) == SEEDS for group in widths.values())


def test_muon_is_not_ahead_of_the_adam_that_decays_alike(over_width: Tuned) -> None:
    """The source has Muon ahead; here neither of a pair is ahead by a tenth with up to 20 nodes, and Muon never is."""
    for muon, adam in ((COUPLED, ADAM), (DECOUPLED, ADAMW), (PUBLISHED, ADAMW)):
        for width in (12, 20, 32):
            ratio = mean(over_width[muon][width], "test/loss") / mean(over_width[adam][width], "test/loss")
            assert 0.9 < ratio < (1.1 if width < 32 else 1.5), (muon, width)


def test_the_gap_at_a_large_decay_is_the_coupling_of_the_decay(runs: list[Run]) -> None:
    """At λ = 5e-3 and K = 20 coupled decay ends Adam; AdamW learns as well as the published Muon."""
    at = tuned([run for run in runs if run["network.width"] == 20], DECAY, RATE)
    loss = {name: mean(groups[5e-3], "test/loss") for name, groups in at.items()}
    assert loss[ADAM] > 0.95
    assert mean(at[ADAM][5e-3], "features/coverage") < 2
    assert loss[ADAMW] < 0.9
    assert loss[PUBLISHED] < 0.9
    assert loss[ADAMW] < loss[PUBLISHED] + 0.03


def test_coverage_is_no_smaller_with_adam(over_width: Tuned) -> None:
    """κᵃ of Adam is below that of independent nodes: its nodes repel each other, too."""
    for name, widths in over_width.items():
        fit = measured_factor(widths)
        assert fit is not None
        assert fit[0] < 1, name
        assert mean(widths[32], "features/coverage") > IRREPS - 1.5
    for width in (12, 20, 32):
        adam, muon = (mean(over_width[name][width], "features/coverage") for name in (ADAM, PUBLISHED))
        assert muon < adam + 1
