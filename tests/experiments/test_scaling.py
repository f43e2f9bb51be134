"""The scaling laws of samples, time and width, each with the control that must not show them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from li2_lightning.analysis.figures.phase_diagram import GENERALIZED, final_accuracy
from li2_lightning.analysis.figures.scaling import LAWS
from li2_lightning.analysis.scaling import exponent, half_points, law
from li2_lightning.runs.load import Run, task_name
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow


def split(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """Runs with right labels, and those with wrong ones."""
    return [run for run in runs if not run["data.label_noise"]], [run for run in runs if run["data.label_noise"]]


def test_the_boundary_follows_m_ln_m(sweep: Callable[[str], Sweep]) -> None:
    runs, control = split(sweep("scaling_samples_quick").runs)
    p, sizes = [run.train_fraction for run in runs], [float(run.task.num_tokens) for run in runs]
    success, seeds = [final_accuracy(run) >= GENERALIZED for run in runs], [int(run["seed"]) for run in runs]
    laws = {
        name: law([measure(*each) for each in zip(p, sizes, strict=True)], sizes, success, seeds)
        for name, measure in LAWS.items()
    }
    assert abs(laws["n/(M ln M)"].drift.value) < 0.08
    assert 2.4 < laws["n/(M ln M)"].constant.value < 3
    assert laws["n/M"].drift.low > 0.2
    assert laws["p/(1−p) · M/ln M"].drift.high < -0.3
    assert all(run.metrics["train/accuracy"].iloc[-1] > 0.99 for run in [*runs, *control])
    assert all(final_accuracy(run) < 0.1 for run in runs if run["data.critical_ratio"] == 0.8)
    assert all(final_accuracy(run) < 0.3 for run in control)


def test_the_time_falls_with_the_learning_rate_and_with_weight_decay(sweep: Callable[[str], Sweep]) -> None:
    """The second only in a wide network, which does not generalize without decay."""
    runs = [run for run in sweep("scaling_time_quick").runs if run["task.order"] == 31]
    centre = {"optimizer.lr": 2e-3, "optimizer.weight_decay": 2e-4, "network.width": 128, "data.critical_ratio": 2.0}

    def found(key: str, column: str, level: float, width: int = 128) -> float:
        wanted = {**centre, "network.width": width}
        members = [run for run in runs if all(run[k] == v for k, v in wanted.items() if k != key) and run[key]]
        steps = [run.first_step(column, level) for run in members]
        assert None not in steps
        return exponent([float(run[key]) for run in members], [float(step or 0) for step in steps],
                        [task_name(run) for run in members], [int(run["seed"]) for run in members]).value  # fmt: skip

    assert found("optimizer.lr", "train/accuracy", 0.99) == pytest.approx(-0.77, abs=0.1)
    assert abs(found("optimizer.weight_decay", "train/accuracy", 0.99)) < 0.1
    assert found("optimizer.weight_decay", "test/accuracy", 0.9, width=512) == pytest.approx(-0.66, abs=0.1)
    control = [run for run in runs if run["optimizer.weight_decay"] == 0]
    assert {(run["network.width"], final_accuracy(run) >= GENERALIZED) for run in control} == {
        (128, True),
        (512, False),
    }


def test_trained_nodes_cover_all_irreps_sooner_than_independent_ones(sweep: Callable[[str], Sweep]) -> None:
    runs, control = split(sweep("scaling_width_quick").runs)
    irreps = {task_name(run): run.task.num_tokens // 2 for run in runs}
    covered = [run.metrics["features/coverage"].iloc[-1] == irreps[task_name(run)] for run in runs]
    halves = half_points([float(run["network.width"]) for run in runs], covered, [task_name(run) for run in runs],
                         [int(run["seed"]) for run in runs])  # fmt: skip
    # Half of the collections of independent nodes are complete with so many.
    for name, independent in {"Z7": 5, "Z11": 10, "Z17": 20, "Z23": 31}.items():
        assert irreps[name] < halves[name].value < independent
    assert all(run.metrics["features/coverage"].iloc[-1] <= 2 for run in control)
