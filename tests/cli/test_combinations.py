"""Everything goes with everything: a few steps of each task, optimizer, loss and network end with finite metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from li2_lightning.runs.metrics_csv import read_metrics

TASKS: dict[str, dict[str, Any]] = {
    "cyclic": {"order": 7},
    "product": {"factors": "2x3"},
    "symmetric": {"degree": 3},
    "alternating": {"degree": 4},
    "dihedral": {"degree": 4},
    "quaternion": {"order": 8},
    "cayley_table": {},
    "expression": {"modulus": 7, "expression": "x^2 + x*y + y^2"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw": {"weight_decay": 1.0},
    "sgd": {"lr": 0.1, "hidden": {"name": "sgd", "momentum": 0.9}},
    "muon": {"hidden": {"name": "muon", "lr": 0.02}, "output": {"name": "adam"}, "embedding": {"name": "adam"}},
}
LOSSES = ("mse", "projected_mse", "cross_entropy")

NETWORKS: dict[str, dict[str, Any]] = {
    "complex": {"complex_weights": True},
    "hidden_layers": {"hidden_layers": 2, "activation": "relu"},
    "no residual": {"hidden_layers": 1, "activation": "relu", "residual": False},
    "batch_norm": {"batch_norm": True},
    "inner_product": {"inner_product": True},
    "trainable_embedding": {"trainable_embedding": True},
    "shared_embedding": {"shared_embedding": True},
    "normalize_weights": {"normalize_weights": True},
    "normalized inner_product": {"normalize_weights": True, "inner_product": True},
    "ridge": {"readout": "ridge"},
    "complex ridge": {"readout": "ridge", "complex_weights": True},
    "zero readout": {"readout_init_scale": 0.0},
    "everything": {
        "complex_weights": True,
        "hidden_layers": 1,
        "batch_norm": True,
        "trainable_embedding": True,
        "shared_embedding": True,
        "normalize_weights": True,
        "output_scale": 0.5,
    },
    "transformer": {"name": "transformer", "activation": "relu", "transformer": {"heads": 2, "feedforward": 8}},
}
ACTIVATIONS = ("relu", "relu_squared", "silu", "tanh", "sigmoid", "gelu", "identity", "linear+quadratic")


def config(folder: Path, **sections: Any) -> dict[str, Any]:
    """A tiny run with every measurement, in ``folder``."""
    return {
        "max_steps": 3,
        "output_dir": str(folder / "outputs"),
        "task": {"name": "cyclic", "order": 7},
        "network": {"width": 8} | sections.pop("network", {}),
        "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}},
        "logger": {"mode": "disabled"},
        "trainer": {"threads": 1} | sections.pop("trainer", {}),
        **sections,
    }


def optimizer(name: str) -> dict[str, Any]:
    """All roles by one optimizer, or as the variation of that name has it."""
    return {role: {"name": name} for role in ("hidden", "output", "embedding")} | OPTIMIZERS[name]


def assert_trained(values: dict[str, Any]) -> None:
    """Rows 0 … max_steps are there, and no column holds an infinity; losses and accuracies are numbers."""
    result = train.run(values)
    metrics = read_metrics(result.directory / "metrics.csv")
    assert metrics["step"].tolist() == list(range(values["max_steps"] + 1))
    always = metrics[["train/loss", "train/accuracy", "test/loss", "test/accuracy", "gradient/norm"]]
    assert np.isfinite(always.to_numpy()).all()
    assert not np.isinf(metrics.to_numpy()).any()
    # It moved: the last weights are not the first.
    assert metrics["train/loss"].iloc[0] != metrics["train/loss"].iloc[-1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_with_every_optimizer_and_loss(task: str, name: str, loss: str, tmp_path: Path) -> None:
    section: dict[str, Any] = {"name": task, **TASKS[task]}
    if task == "cayley_table":
        np.save(tmp_path / "klein.npy", np.arange(4)[:, None] ^ np.arange(4))
        section["path"] = str(tmp_path / "klein.npy")
    assert_trained(config(tmp_path, task=section, loss=loss, optimizer=optimizer(name)))


@pytest.mark.parametrize("variant", NETWORKS)
def test_every_network_trains(variant: str, tmp_path: Path) -> None:
    assert_trained(config(tmp_path, network=NETWORKS[variant]))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["projected_mse", "cross_entropy"])
@pytest.mark.parametrize("variant", [variant for variant in NETWORKS if "ridge" not in variant])
def test_every_network_trains_with_every_loss(variant: str, loss: str, tmp_path: Path) -> None:
    """Slow because there are so many: 5 s. Cross-entropy has no ridge readout."""
    assert_trained(config(tmp_path, network=NETWORKS[variant], loss=loss))


@pytest.mark.parametrize("variant", ["ridge", "complex ridge"])
def test_the_ridge_readout_trains_with_projected_mse(variant: str, tmp_path: Path) -> None:
    assert_trained(config(tmp_path, network=NETWORKS[variant], loss="projected_mse"))


@pytest.mark.parametrize("name", ["sgd", "muon"])
@pytest.mark.parametrize("variant", ["complex", "everything", "transformer"])
def test_networks_train_with_other_optimizers(variant: str, name: str, tmp_path: Path) -> None:
    assert_trained(config(tmp_path, network=NETWORKS[variant], optimizer=optimizer(name)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_trains(activation: str, tmp_path: Path) -> None:
    assert_trained(config(tmp_path, network={"activation": activation}))


@pytest.mark.parametrize("variant", ["inner_product", "shared_embedding", "transformer", "batch_norm"])
def test_three_operands_train(variant: str, tmp_path: Path) -> None:
    task = {"name": "cyclic", "order": 5, "num_operands": 3}
    assert_trained(config(tmp_path, task=task, network=NETWORKS[variant]))


def test_three_operands_of_an_expression_train(tmp_path: Path) -> None:
    task = {"name": "expression", "modulus": 5, "expression": "x*y + z", "num_operands": 3}
    assert_trained(config(tmp_path, task=task))


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize("variant", ["batch_norm", "hidden_layers", "ridge", "transformer"])
def test_other_precisions_train(variant: str, precision: str, tmp_path: Path) -> None:
    assert_trained(config(tmp_path, network=NETWORKS[variant], trainer={"precision": precision}))


@pytest.mark.parametrize("loss", LOSSES)
def test_mini_batches_train(loss: str, tmp_path: Path) -> None:
    values = config(tmp_path, loss=loss, data={"batch_size": 8, "evaluate_every_n_steps": 1})
    assert_trained(values)


@pytest.mark.parametrize("data", [{"train_fraction": 0.5}, {"train_size": 20}, {"critical_ratio": 0.6}])
def test_every_way_to_split_trains(data: dict[str, Any], tmp_path: Path) -> None:
    assert_trained(config(tmp_path, data=data))


def test_a_split_file_decides_which_rows_train(tmp_path: Path) -> None:
    np.savez(tmp_path / "split.npz", train=np.arange(0, 49, 2), test=np.arange(1, 20, 2))
    assert_trained(config(tmp_path, data={"split_file": str(tmp_path / "split.npz")}))
