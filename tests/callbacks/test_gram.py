"""The deviations from random features: exact against n×n and K×K matrices, sampled against exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.gram import Gram
from li2_lightning.config.schema import NetworkConfig
from li2_lightning.data import Rows
from li2_lightning.errors import InputError
from li2_lightning.losses import build_loss
from li2_lightning.measurement.step_state import StepState
from li2_lightning.networks.build import build_network
from li2_lightning.seeds import generator
from li2_lightning.tasks.splits import split_rows
from li2_lightning.tasks.tasks import build_task

GRAM, KERNEL = "features/gram_offdiagonal", "features/kernel_distance"


def dense(F: Tensor) -> tuple[float, float]:
    """From the whole matrices; a and b by least squares on the entries of FFᴴ."""
    centered = F - F.mean(dim=0)
    gram = (centered.mH @ centered).abs()
    n, K = F.shape
    off = (gram.sum() - gram.diagonal().sum()) / (K * (K - 1)) / gram.diagonal().mean()
    kernel = (F @ F.mH).reshape(-1, 1)
    basis = torch.stack([torch.eye(n).flatten(), torch.ones(n * n)], dim=1).to(F.dtype)
    rest = kernel - basis @ torch.linalg.lstsq(basis, kernel).solution
    return off.item(), (rest.norm() / kernel.norm()).item()


@pytest.mark.parametrize(
    "overrides",
    [
        [],  # width 16 is below the 96 columns: exact by itself
        ["network.width=150", "callbacks.gram.exact=true"],
        ["network.complex_weights=true", "network.activation=sigmoid"],
        ["network.hidden_layers=1", "network.activation=relu"],
        ["network={name: transformer, activation: gelu}"],
    ],
    ids=lambda value: ",".join(value),
)
def test_exact_columns_are_the_dense_ones(tiny_run: Any, overrides: list[str]) -> None:
    run = tiny_run("optimizer.lr=0.02", "max_steps=3", *overrides)
    for row in run.rows:
        gram, kernel = dense(run.seen[int(row["step"])].features)
        assert row[GRAM] == pytest.approx(gram, rel=1e-9)
        assert row[KERNEL] == pytest.approx(kernel, rel=1e-9)


def test_sampled_columns_stay_near_the_exact_ones_while_features_emerge(tiny_run: Any) -> None:
    """M=13, K=256, from random features to trained ones: 96 of 256 columns, every row within 5 %."""
    options = ["task.order=13", "network.width=256", "max_steps=60", "optimizer.lr=0.02", "data.train_fraction=0.7"]
    only = [f"callbacks.{name}.enabled=false" for name in ("gradient", "energy", "features", "updates", "stages")]
    sampled, exact = (tiny_run(*options, *only, f"callbacks.gram.exact={value}") for value in ("false", "true"))
    kernels = exact.column(KERNEL)
    assert max(kernels) > 1.2 * min(kernels)  # the features do not stay as they are
    for name in (GRAM, KERNEL):
        ratios = [a / b for a, b in zip(sampled.column(name), exact.column(name), strict=True)]
        assert max(abs(ratio - 1) for ratio in ratios) < 0.05
        assert max(abs(ratio - 1) for ratio in ratios) > 1e-6  # it is an estimate


def test_lemma_1_at_the_default_initialization() -> None:
    """M=71 and n=2016 as in the default run; per pair of nodes, so a quarter of its width will do."""
    task = build_task({"name": "cyclic"})
    rows = split_rows(task, seed=0).train
    network = build_network(NetworkConfig(width=512), task, torch.float32, generator(0, "initial weights"))
    tokens, labels = torch.from_numpy(task.operands[rows]), torch.from_numpy(task.labels[rows])
    with torch.no_grad():
        state = StepState(0, network(tokens), Rows(tokens, labels), network, build_loss("mse"))
    columns = Gram().measure(None, state)  # type: ignore[arg-type]
    assert float(columns[GRAM]) == pytest.approx(0.026, abs=1e-3)


def test_exact_is_true_or_false() -> None:
    with pytest.raises(InputError, match=r"callbacks\.gram\.exact='yes' does not fit; it is true or false"):
        Gram(exact="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"callbacks\.gram\.sampled_columns=0 does not fit"):
        Gram(sampled_columns=0)
