"""The scaling laws of samples, time, the limit of G_F and width, each with the control that must not show them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from li2_lightning.analysis.figures.phase_diagram import GENERALIZED, by_width, final_accuracy
from li2_lightning.analysis.figures.scaling import LAWS
from li2_lightning.analysis.scaling import Estimate, exponent, half_points, law
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.runs.load import Run, task_name
from li2_lightning.theory.lazy import lazy_limit
from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow

DECAY = "optimizer.weight_decay"


def split(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """Runs with right labels, and those with wrong ones."""
    return [run for run in runs if not run["data.label_noise"]], [run for run in runs if run["data.label_noise"]]


def power(runs: list[Run], key: str, outcomes: list[float]) -> Estimate:
    """The exponent of an outcome of each run over a positive setting."""
    return exponent([float(run[key]) for run in runs], outcomes, [task_name(run) for run in runs],
                    [int(run["seed"]) for run in runs])  # fmt: skip


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


def test_a_larger_group_bears_less_weight_decay(sweep: Callable[..., Sweep]) -> None:
    """Of two weight decays a factor √2 apart a run memorizes with the smaller and decays to nothing with the larger."""
    borne = {47: (1.6e-3, 2.26e-3), 127: (4.38e-4, 6.2e-4)}
    grids = ",".join(
        f'{{task.order:"{order}",optimizer.weight_decay:"{less},{more}"}}' for order, (less, more) in borne.items()
    )
    runs = sweep("scaling_samples", "seed=100", "data.critical_ratio=1.15", "max_steps=400",
                 f"hydra.sweeper.grids=[{grids}]").runs  # fmt: skip
    for order, (less, more) in borne.items():
        kept, lost = (
            next(run for run in runs if (run["task.order"], run[DECAY]) == (order, decay)) for decay in (less, more)
        )
        assert kept.last("train/accuracy") > 0.99
        assert lost.last("train/accuracy") < 0.1


def test_the_largest_real_dimension_of_an_irrep_orders_the_boundaries(sweep: Callable[..., Sweep]) -> None:
    """The largest complex dimension does not. Half of the seeds, at the shares of pairs beside the boundaries."""
    cells = {"24": {"2,6": "0.3,0.35", "1,4,12": "0.4,0.5", "3": "0.5,0.8"}, "20": {"3": "0.8"}, "21": {"1": "0.8"}}
    grids = ",".join(
        f'{{task.order:"{order}",task.index:"{index}",data.train_fraction:"{shares}"}}'
        for order, found in cells.items()
        for index, shares in found.items()
    )
    runs = sweep("scaling_irreps_quick", "seed=range(4)", f"hydra.sweeper.grids=[{grids}]").runs
    outcomes: dict[tuple[int, int, float], set[bool]] = {}
    for run in runs:
        blocks = isotypic_blocks(run.group)
        dimensions = max(block.dimension for block in blocks), max(block.real_dimension for block in blocks)
        generalizes = final_accuracy(run) >= GENERALIZED
        outcomes.setdefault((*dimensions, run["data.train_fraction"]), set()).add(generalizes)
    # The dihedral group, and C24 as the control.
    for complex_dimension in (2, 1):
        assert outcomes[complex_dimension, 2, 0.3] == {False}
        assert outcomes[complex_dimension, 2, 0.35] == {True}
    # C3:C8 and C3:Q8, whose largest complex dimension is that of the dihedral group; S4.
    for dimensions in ((2, 4), (3, 3)):
        assert outcomes[*dimensions, 0.4] == {False}
        assert outcomes[*dimensions, 0.5] == {True}
    # SL(2,3), F20; and F21, whose largest complex dimension is that of S4 and SL(2,3).
    assert outcomes[3, 4, 0.5] == {False}
    assert outcomes[3, 4, 0.8] == outcomes[4, 4, 0.8] == {True}
    assert outcomes[3, 6, 0.8] == {False}


def test_the_time_falls_with_the_learning_rate_and_with_weight_decay(sweep: Callable[[str], Sweep]) -> None:
    """The second only in a wide network, which does not generalize without decay."""
    runs = [run for run in sweep("scaling_time_quick").runs if run["task.order"] == 31]
    centre = {"optimizer.lr": 2e-3, "optimizer.weight_decay": 2e-4, "network.width": 128, "data.critical_ratio": 2.0}

    def found(key: str, column: str, level: float, width: int = 128) -> float:
        wanted = {**centre, "network.width": width}
        members = [run for run in runs if all(run[k] == v for k, v in wanted.items() if k != key) and run[key]]
        steps = [run.first_step(column, level) for run in members]
        assert None not in steps
        return power(members, key, [float(step or 0) for step in steps]).value

    assert found("optimizer.lr", "train/accuracy", 0.99) == pytest.approx(-0.77, abs=0.1)
    assert abs(found("optimizer.weight_decay", "train/accuracy", 0.99)) < 0.1
    assert found("optimizer.weight_decay", "test/accuracy", 0.9, width=512) == pytest.approx(-0.66, abs=0.1)
    control = [run for run in runs if run["optimizer.weight_decay"] == 0]
    assert {(run["network.width"], final_accuracy(run) >= GENERALIZED) for run in control} == {
        (128, True),
        (512, False),
    }


def test_the_limit_of_g_f_is_proportional_to_weight_decay(sweep: Callable[[str], Sweep]) -> None:
    """W is held. With fewer nodes than samples the limit hardly depends on weight decay; without decay it is 0."""
    runs = sweep("scaling_limit_quick").runs
    found = {}
    for K, members in by_width(runs).items():
        decayed = [run for run in members if run[DECAY]]
        found[K] = power(decayed, DECAY, [run.last("gradient/norm") for run in decayed])
        largest = power(decayed, DECAY, [float(run.metrics["gradient/norm"].max()) for run in decayed])
        assert abs(largest.value) < 0.03
        for run in (run for run in decayed if run["seed"] < 2):
            train = run.split.train
            features = run.network().compute_features(torch.as_tensor(run.task.operands[train])).last
            targets = torch.as_tensor(np.eye(run.task.num_classes)[run.task.labels[train]])
            limit = lazy_limit(features, targets, len(train) * run[DECAY] / 2).norm().item()
            assert run.last("gradient/norm") == pytest.approx(limit, rel=1e-5)
        undecayed = [run.last("gradient/norm") for run in members if not run[DECAY]]
        assert min(undecayed) > 30 if K == 24 else max(undecayed) < 1e-8
    assert -0.05 < found[24].low < found[24].high < 0
    assert 0.99 < found[768].low < found[768].high < 1


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
