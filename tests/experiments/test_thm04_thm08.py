"""Theorems 4 and 8 in runs that are energy ascent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from li2_lightning.analysis.figures.phase_diagram import half_crossing
from li2_lightning.analysis.figures.theorems import covered_share, found_blocks
from li2_lightning.theory.energy import block_shares
from li2_lightning.theory.muon import collection_times, independent_collection_time, muon_collection_time
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("order", "boundary"), [(23, 0.562), (47, 0.507)])
def test_half_of_the_irreps_are_kept_at_the_measured_boundary(
    sweep: Callable[[str], Sweep], order: int, boundary: float
) -> None:
    runs = [run for run in sweep("thm04_boundary_quick").runs if run["task.order"] == order]
    fractions = sorted({run["data.train_fraction"] for run in runs})
    shares, purities = [], []
    for fraction in fractions:
        group = [run for run in runs if run["data.train_fraction"] == fraction]
        assert len(group) == 3
        shares.append(sum(map(covered_share, group)) / 3)
        purities.append(sum(float(run.metrics["features/purity"].iloc[-1]) for run in group) / 3)
    assert fractions[0] == 0.4
    assert shares[0] < 0.1
    assert fractions[-1] == 0.7
    assert shares[-1] > 0.95
    assert half_crossing(fractions, shares) == pytest.approx(boundary, abs=0.1)
    assert purities == pytest.approx(sorted(purities), abs=0.05)
    assert purities[-1] > 0.75


def test_nodes_collect_irreps_like_coupons(sweep: Callable[[str], Sweep]) -> None:
    """Collections along 5,120 nodes: T₀ for the shares found, and 33.2187 for eleven equal ones; κ = ½ takes fewer."""
    runs = sweep("thm08_collectors_quick").runs
    draws, count = found_blocks(runs)
    assert (len(draws), count) == (5120, 11)
    for run in runs:
        assert block_shares(run.weights()["W"].double(), run.task.group).max(dim=0).values.mean() > 0.99
    p = torch.bincount(draws, minlength=count).double() / len(draws)
    assert p.min() > 0.06
    assert p.max() < 0.12
    times = collection_times(draws, count).double()
    error = times.std() / len(times) ** 0.5
    assert len(times) > 100
    assert (times.mean() - independent_collection_time(p)).abs() < 4 * error
    assert times.mean().item() == pytest.approx(33.2187, abs=4 * error.item())
    assert muon_collection_time(p, 0.5) < times.mean() - 4 * error
