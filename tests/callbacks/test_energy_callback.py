"""The energy columns against E of every node at unit norm, by dense one-hots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from li2_lightning.networks.activations import ACTIVATIONS


def unit_energies(run: Any, step: int) -> Tensor:
    """½‖Ỹᵀf‖² of the first layer's nodes on the training rows, each node's one-hot weights scaled to length 1."""
    config, rows, w = run.module.network.config, run.data.train, run.seen[step].weights
    M, operands = run.data.task.num_tokens, rows.tokens.shape[1]
    tables = [w["W"]] * operands if config.shared_embedding else list(w["W"].split(M))
    if "E" in w:
        tables = [w["E"] @ table for table in tables]
    W = torch.cat(tables)
    W = W / W.abs().square().sum(dim=0).sqrt()
    X = functional.one_hot(rows.tokens, M).to(W.dtype)
    if config.inner_product:
        f = torch.stack([X[:, i] @ W.split(M)[i] for i in range(operands)]).prod(dim=0)
    else:
        f = ACTIVATIONS[config.activation](X.flatten(1) @ W)
    Y = torch.eye(run.data.task.num_classes, dtype=torch.float64)[rows.labels]
    return 0.5 * ((Y - Y.mean(dim=0)).T.to(f.dtype) @ f).abs().square().sum(dim=0)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"network.activation={name}"] for name in ACTIVATIONS),
        ["network.batch_norm=true"],
        ["network.batch_norm=true", "network.activation=tanh"],
        ["network.hidden_layers=2", "network.activation=relu"],
        ["network.hidden_layers=1", "network.activation=gelu"],
        ["network.complex_weights=true"],
        ["network.complex_weights=true", "network.activation=sigmoid"],
        ["network.trainable_embedding=true"],
        ["network.trainable_embedding=true", "network.shared_embedding=true", "network.activation=silu"],
        ["network.inner_product=true"],
        ["network.inner_product=true", "network.batch_norm=true", "task.order=5", "task.num_operands=3"],
        ["task.order=5", "task.num_operands=3"],
        # More training rows than one block of evaluation.
        ["task.order=23", "data.train_fraction=0.7", "network.activation=tanh"],
        ["data.batch_size=8", "data.evaluate_every_n_steps=1"],
    ],
    ids=lambda value: ",".join(value),
)
def test_mean_and_maximum_are_those_of_the_dense_formula(tiny_run: Any, overrides: list[str]) -> None:
    run = tiny_run("max_steps=2", "optimizer.lr=0.05", *overrides)
    for row in run.rows:
        energies = unit_energies(run, int(row["step"]))
        assert row["energy/mean"] == pytest.approx(energies.mean().item(), rel=1e-9)
        assert row["energy/max"] == pytest.approx(energies.max().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("task", "best"),
    [
        (["task.order=7"], 7 / 4),  # conjugate pairs: M/4
        (["task.order=8"], 8 / 2),  # the sign character of an even group: M/2
        (["task.name=symmetric", "task.degree=3"], 6 / 2),
        (["task.name=alternating", "task.degree=4"], 12 / 4),  # a pair at M/4, dimension three at M/6
        (["task.name=quaternion"], 8 / 2),
        (["task.name=expression", "task.modulus=7", "task.expression=x+y"], 7 / 4),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, list) else None,
)
def test_relative_energy_is_of_the_best_maximum_of_theorem_2_on_that_share_of_the_rows(
    tiny_run: Any, task: list[str], best: float
) -> None:
    run = tiny_run(*task, "max_steps=1", "data.train_fraction=0.6")
    share = len(run.data.train) / len(run.data.task.labels)
    assert 0.5 < share < 0.61
    for row in run.rows:
        assert row["energy/relative"] == pytest.approx(row["energy/max"] / (best * share**2), rel=1e-12)


def test_a_fourier_node_has_the_best_energy(tiny_run: Any, tmp_path: Path) -> None:
    """Trained on all rows but one: node 0, (cos, cos) of one frequency, is at a maximum; node 1 is constant, E = 0."""
    M, k = 7, 2 * np.pi * np.arange(7) / 7
    W = np.ones((2 * M, 16))
    W[:, 0] = 3 * np.concatenate([np.cos(k), np.cos(k)])
    np.savez(tmp_path / "w.npz", W=W, V=np.zeros((16, M)))
    run = tiny_run(f"network.initial_weights={tmp_path / 'w.npz'}", "max_steps=1", f"data.train_size={M * M - 1}")
    energies = unit_energies(run, 0)
    assert energies[0] > 0.95 * 7 / 4
    assert energies[1] < 0.1
    assert run.rows[0]["energy/relative"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "overrides",
    [
        ["network.activation=relu"],
        ["network.complex_weights=true"],
        ["network.inner_product=true"],
        ["task.order=5", "task.num_operands=3"],
        ["task.name=expression", "task.modulus=7", "task.expression=x"],
    ],
    ids=lambda value: ",".join(value),
)
def test_where_theorem_2_does_not_speak_there_is_no_relative_energy(tiny_run: Any, overrides: list[str]) -> None:
    run = tiny_run("max_steps=1", *overrides)
    assert "energy/relative" not in run.rows[0]
    assert run.rows[0]["energy/max"] is not None


@pytest.mark.parametrize("activation", ["square", "tanh"])
def test_a_node_without_weights_has_no_direction_and_does_not_count(
    tiny_run: Any, tmp_path: Path, activation: str
) -> None:
    draw = np.random.default_rng(0)
    W, V = draw.standard_normal((14, 16)), draw.standard_normal((16, 7))
    W[:, 3] = 0
    np.savez(tmp_path / "w.npz", W=W, V=V)
    run = tiny_run(f"network.initial_weights={tmp_path / 'w.npz'}", "max_steps=1", f"network.activation={activation}")
    energies = unit_energies(run, 0)
    alive = energies[~energies.isnan()]
    assert len(alive) == 15
    assert run.rows[0]["energy/mean"] == pytest.approx(alive.mean().item(), rel=1e-9)
    assert run.rows[0]["energy/max"] == pytest.approx(alive.max().item(), rel=1e-9)


def test_a_transformer_has_no_nodes_and_the_run_says_so(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run("network={name: transformer, activation: relu}", "max_steps=1")
    assert not [name for name in run.rows[0] if name.startswith("energy/")]
    assert "energy: this network has no nodes on the one-hots" in capsys.readouterr().err
