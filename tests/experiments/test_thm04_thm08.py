"""Theorems 4 and 8 in runs that are energy ascent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from li2_lightning.analysis.figures.phase_diagram import by_task, by_width, half_crossing
from li2_lightning.analysis.figures.theorems import complete_shares, covered_share, found_blocks
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


def test_muon_saves_nodes_that_ascend_by_themselves(sweep: Callable[[str], Sweep]) -> None:
    """Complete coverage in 48 seeds; the control deals the nodes of Muon to the seeds, which makes them independent."""
    ascent, muon = {}, {}
    for task, runs in by_task(sweep("thm08_muon_quick").runs).items():
        for name, found in (("optimizers.sphere_ascent:SphereAscent", ascent), ("muon", muon)):
            widths = by_width([run for run in runs if run["optimizer.hidden.name"] == name])
            assert list(widths) == [10, 16, 24, 32]
            for width, members in widths.items():
                complete, dealt = complete_shares(members)
                assert len(complete) == 48
                found[task, width] = float(complete.double().mean()), dealt
                if name != "muon":
                    # Nodes that climb by themselves are independent, so dealing changes nothing.
                    assert found[task, width][0] == pytest.approx(dealt, abs=0.25), (task, width)
    assert muon["Z2×Z2×Z2×Z2", 32][0] > 0.9
    assert ascent["Z2×Z2×Z2×Z2", 32][0] < 0.3
    assert muon["Z23", 24][0] > 0.6
    assert ascent["Z23", 24][0] < 0.55
    for task, width in (("Z2×Z2×Z2×Z2", 24), ("Z2×Z2×Z2×Z2", 32), ("Z23", 24), ("Z23", 32)):
        assert muon[task, width][0] > ascent[task, width][0] + 0.2
        assert muon[task, width][0] > muon[task, width][1] + 0.2
    assert all(muon[key][0] >= ascent[key][0] - 0.1 for key in muon)
