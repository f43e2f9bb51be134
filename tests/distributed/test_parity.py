"""Several ranks measure and train what a single process does: weights and every column, real processes over gloo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest

import train
from li2_lightning.distributed import collectives as ranks
from tests.distributed.conftest import configure, differences, on_ranks

Compare = Callable[..., dict[str, list[str]]]

# 20 rows divide among 2 ranks and 21 among 3; neither number divides among both. Batches of 6 leave a rest.
TABLE = {
    f"{loss}, {optimizer}, n={n}, {'mini-batches' if batch else 'full batch'}": [
        f"loss={loss}",
        f"data.train_size={n}",
        f"optimizer.hidden.name={optimizer}",
        *(["data.batch_size=6", "data.evaluate_every_n_steps=1"] if batch else []),
    ]
    for loss, optimizer, n, batch in product(
        ("mse", "projected_mse", "cross_entropy"), ("adam", "muon"), (20, 21), (False, True)
    )
}
BATCHES = ["data.batch_size=6", "data.evaluate_every_n_steps=5"]
VARIANTS = {
    "ridge, n < K": ["network.readout=ridge", "network.ridge=0.1", "network.width=32"],
    "ridge, n > K": ["network.readout=ridge", "network.ridge=0.1", "network.width=12"],
    "ridge, projected": ["network.readout=ridge", "network.ridge=0.1", "network.width=12", "loss=projected_mse"],
    "ridge, complex": ["network.readout=ridge", "network.ridge=0.1", "network.complex_weights=true"],
    "ridge, mini-batches": ["network.readout=ridge", "network.ridge=0.1", "network.width=12", *BATCHES],
    "batch norm": ["network.batch_norm=true", "data.train_size=21"],
    "batch norm, mini-batches": ["network.batch_norm=true", *BATCHES],
    "batch norm, complex, two layers": [
        "network.batch_norm=true",
        "network.complex_weights=true",
        "network.hidden_layers=1",
    ],
    "complex": ["network.complex_weights=true", "data.train_size=21"],
    "complex, projected, mini-batches": ["network.complex_weights=true", "loss=projected_mse", *BATCHES],
    "complex, muon": ["network.complex_weights=true", "optimizer.hidden.name=muon"],
    "embedding, silu": ["network.trainable_embedding=true", "network.activation=silu"],
    "inner product, normalized": ["network.inner_product=true", "network.normalize_weights=true"],
    "fewer rows in a batch than ranks": ["data.batch_size=1", "data.evaluate_every_n_steps=10"],
    "batch norm, fewer rows than ranks": [
        "network.batch_norm=true",
        "data.batch_size=1",
        "data.evaluate_every_n_steps=10",
    ],
    "no test row on some rank": ["data.train_size=48"],
    "transformer": [
        "network.name=transformer",
        "network.activation=gelu",
        "network.transformer.feedforward=16",
        "data.train_size=21",
    ],
    "scheduler": ["scheduler.name=cosine", "optimizer.lr=0.01"],
    "stops at a test accuracy": ["stop_at_test_accuracy=0.2", "optimizer.lr=0.01"],
}


def differing(found: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {name: lines for name, lines in found.items() if lines}


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    """From Python, where this process is the first rank and starts the other one."""
    config = configure(tmp_path, "max_steps=25", "data.train_size=21", "loss=projected_mse")
    two = train.run(on_ranks(config, 2))
    assert differences(train.run(config).directory, two.directory, 1e-10) == []
    assert train.run(on_ranks(config, 2)).stored
    assert ranks.world_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-10), ("32-true", 1e-5)])
def test_every_loss_and_optimizer(size: int, precision: str, tolerance: float, compare: Compare) -> None:
    """Slow because it makes 48 runs: a minute."""
    table = {name: [*overrides, f"trainer.precision={precision}"] for name, overrides in TABLE.items()}
    assert differing(compare(size, table, tolerance)) == {}


@pytest.mark.slow
def test_the_callbacks_that_are_off_by_default(compare: Compare) -> None:
    """Slow because two processes start."""
    on = [
        "callbacks.missing.ascent_every_n_steps=10",
        "callbacks.circuits.enabled=true",
        "callbacks.spectra.every_n_steps=10",
        "callbacks.spectra.kernel_columns=9",
        "max_steps=20",
    ]
    deep = [*on, "callbacks.depth.enabled=true", "network.hidden_layers=2", "data.train_size=21"]
    table = {
        "depth": [*deep, "network.activation=relu", "network.residual=false"],
        "depth, batch norm": [*deep, "network.activation=tanh", "network.batch_norm=true"],
        "depth, complex": [*deep, "network.complex_weights=true"],
        "n > K": [*on, "data.train_size=21"],
        "n < K": [*on, "network.width=32", "loss=cross_entropy"],
        "two layers": [*on, "network.hidden_layers=1", "network.activation=relu", "loss=projected_mse"],
        "ridge, complex": [*on, "network.readout=ridge", "network.ridge=0.1", "network.complex_weights=true"],
    }
    assert differing(compare(2, table, 1e-9)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_every_variant_of_the_network(size: int, compare: Compare) -> None:
    """Slow because it makes 38 runs: a minute."""
    assert differing(compare(size, VARIANTS, 1e-10)) == {}
