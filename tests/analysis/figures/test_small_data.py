"""Nodes counted by their weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from li2_lightning.analysis.figures import find_figure
from li2_lightning.analysis.figures.small_data import Nodes, weighed_nodes
from li2_lightning.errors import InputError
from li2_lightning.networks.activations import find_activation
from li2_lightning.runs.load import Run, find_runs
from li2_lightning.tasks.splits import split_rows
from li2_lightning.theory.energy import energy_of_weights


def test_means_count_a_node_by_its_squared_norm() -> None:
    nodes = Nodes(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([2.0, 6.0, 9.0]))
    assert nodes.mean(nodes.purity) == 0.75
    assert nodes.mean(nodes.energies) == 3.0


def test_the_energies_are_those_of_the_one_hots_of_the_training_rows(small_sweep: Path) -> None:
    run = find_runs([small_sweep])[0]
    nodes = weighed_nodes(run)
    W, table = run.weights()["W"].double(), torch.tensor(run.task.labels)
    tokens = torch.tensor(run.task.operands)
    order, n = run.task.num_tokens, round(run.train_fraction * len(table))
    torch.testing.assert_close(nodes.weights, W.square().sum(dim=0))
    assert ((nodes.purity > 0) & (nodes.purity <= 1)).all()
    eye = torch.eye(order, dtype=torch.float64)
    rows = split_rows(run.task, seed=run["seed"], train_size=n).train
    X, Y = torch.cat([eye[tokens[rows, 0]], eye[tokens[rows, 1]]], dim=1), eye[table[rows]]
    expected = energy_of_weights(W / W.norm(dim=0), X, Y - Y.mean(dim=0), find_activation("square"))
    torch.testing.assert_close(nodes.energies, expected)


def test_a_point_a_run_and_a_panel_of_nodes(small_sweep: Path) -> None:
    runs = find_runs([small_sweep])
    curve, averages, scatter = find_figure("fig07_small_data")(runs).axes
    points = [line for line in averages.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in points) == len(runs)
    assert len(scatter.collections) == len(points)
    assert curve.get_ylabel() == "test/accuracy"


def test_another_activation_is_refused(make_run: Callable[..., Run]) -> None:
    with pytest.raises(InputError, match="activation=square"):
        find_figure("fig07_small_data")([make_run("network.activation=relu")])
