"""fig08_muon_quick as a user runs it: few nodes, W by Adam or by Muon, and the coverage that Theorem 8 expects.

Slow: 72 runs, up to ten minutes on two cores.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import pytest

from li2_lightning.analysis.figures.optimizers import best_by_width, coverage, final
from li2_lightning.runs.load import Run
from li2_lightning.theory.muon import expected_coverage
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow
WIDTHS, IRREPS = (16, 24, 32, 64), 15
Best = dict[str, dict[int, list[Run]]]


@pytest.fixture(scope="module")
def best(sweep: Callable[..., Sweep]) -> Best:
    runs = sweep("fig08_muon_quick", diverging=True).runs
    assert len(runs) == 2 * 3 * 4 * 3
    return best_by_width(runs)


def median(runs: Sequence[Run], column: str) -> float:
    return statistics.median(map(final(column), runs))


def test_both_are_there_at_every_width_with_every_seed(best: Best) -> None:
    assert set(best) == {"adam", "muon"}
    for widths in best.values():
        assert tuple(widths) == WIDTHS
        assert all(len(runs) == 3 for runs in widths.values())


def test_neither_is_far_ahead_at_few_nodes(best: Best) -> None:
    """The source has Muon ahead; here, each at its best learning rate, the two do not differ by a fifth."""
    for width in (16, 24, 32):
        adam, muon = (median(best[name][width], "test/loss") for name in ("adam", "muon"))
        assert 0.8 < muon / adam < 1.25, width


def test_more_nodes_help_both(best: Best) -> None:
    for widths in best.values():
        losses = [median(runs, "test/loss") for runs in widths.values()]
        assert losses == sorted(losses, reverse=True)
        assert median(widths[64], "test/accuracy") > 0.98
        assert median(widths[16], "test/accuracy") < 0.8


def test_coverage_lies_between_independent_nodes_and_one_for_each_irrep(best: Best) -> None:
    for name, widths in best.items():
        measured = {width: statistics.median(map(coverage, runs)) for width, runs in widths.items()}
        independent, no_waste = (expected_coverage(IRREPS, 64, factor) for factor in (1.0, 0.0))
        for width, found in measured.items():
            assert independent[width] - 2 <= found <= no_waste[width], (name, width, found)
        assert measured[64] == IRREPS
