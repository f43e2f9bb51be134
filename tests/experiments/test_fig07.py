"""Fig. 7: with few samples the learning rate decides between Fourier features and memorizing ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from li2_lightning.analysis.figures.small_data import weighed_nodes
from tests.experiments.conftest import Sweep


@pytest.mark.slow
def test_a_small_rate_finds_fourier_features_of_low_energy_and_a_large_one_memorizes(
    sweep: Callable[[str], Sweep],
) -> None:
    """Both fit the training rows; purity and E are means over nodes by ‖w‖²."""
    purity: dict[float, list[float]] = {}
    energies: dict[float, list[float]] = {}
    accuracy: dict[float, list[float]] = {}
    for run in sweep("fig07_small_data_quick").runs:
        nodes, rate = weighed_nodes(run), run["optimizer.lr"]
        purity.setdefault(rate, []).append(nodes.mean(nodes.purity))
        energies.setdefault(rate, []).append(nodes.mean(nodes.energies))
        accuracy.setdefault(rate, []).append(float(run.metrics["test/accuracy"].iloc[-1]))
        assert run.metrics["train/accuracy"].iloc[-1] > 0.95
    small, large = 2e-3, 2e-1
    assert len(accuracy[small]) == len(accuracy[large]) == 3
    assert min(accuracy[small]) > 0.9
    assert max(accuracy[large]) < 0.3
    assert min(purity[small]) > 0.75
    assert max(purity[large]) < 0.65
    assert sum(energies[small]) < sum(energies[large])
