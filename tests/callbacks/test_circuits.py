"""Restricted and excluded loss, shares of the logits, inequality, softmax collapse: against dense matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks.circuits import Circuits
from callbacks.registry import build_callbacks
from li2_lightning import groups
from li2_lightning.groups.representations import isotypic_blocks

ON = "callbacks.circuits.enabled=true"
S3 = ["task.name=symmetric", "task.degree=3"]


def inequality(values: Tensor) -> float:
    return float((values[:, None] - values).abs().mean() / (2 * values.mean()))


@pytest.mark.parametrize(
    ("overrides", "group"),
    [
        ([], groups.cyclic(7)),
        ([*S3, "loss=cross_entropy"], groups.symmetric(3)),
        ([*S3, "loss=projected_mse", "network.complex_weights=true"], groups.symmetric(3)),
        pytest.param(
            ["loss=cross_entropy", "network.hidden_layers=1", "network.activation=relu"],
            groups.cyclic(7),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else value.name,
)
def test_columns_are_those_of_explicit_projectors(tiny_run: Any, overrides: list[str], group: Any) -> None:
    run = tiny_run(*overrides, ON, "network.width=8", "max_steps=2", "optimizer.lr=0.1")
    blocks = isotypic_blocks(group)[1:]
    projectors = [torch.tensor(block.projector) for block in blocks]
    ranks = torch.tensor([float(block.rank) for block in blocks]).double()
    labels = run.data.train.labels
    anything = False
    for row in run.rows:
        seen = run.seen[int(row["step"])]
        centred = seen.outputs - seen.outputs.mean(dim=0)
        norms = torch.stack([(centred @ P).square().sum() for P in projectors])
        for block, share in zip(blocks, norms / norms.sum(), strict=True):
            assert row[f"circuits/logit_share/{block.label.replace(' ', '')}"] == pytest.approx(share.item(), rel=1e-9)
        assert row["circuits/logit_gini"] == pytest.approx(inequality(norms / ranks), rel=1e-9)
        halves = seen.weights["W"].split(group.order)
        parts = torch.stack([sum((P.to(h.dtype) @ h).abs().square().sum(dim=0) for h in halves) for P in projectors])  # type: ignore[misc]
        assert row["circuits/weight_gini"] == pytest.approx(inequality(parts.sum(dim=1) / ranks), rel=1e-9)
        learned = (parts / parts.sum(dim=0) > 0.5).any(dim=1)
        inside = seen.outputs @ torch.stack(projectors)[learned].sum(dim=0)
        anything |= bool(learned.any())
        constant = seen.outputs.mean(dim=1, keepdim=True)
        for name, outputs in (("restricted", inside + constant), ("excluded", seen.outputs - inside)):
            loss = run.module.loss(outputs, labels).item()
            assert row[f"circuits/{name}_loss"] == pytest.approx(loss, rel=1e-9)
        size = sum(w.abs().square().sum() for w in seen.weights.values())
        assert row["circuits/weight_norm"] == pytest.approx(float(size) ** 0.5, rel=1e-9)
        assert row["circuits/softmax_collapse"] == 0
    assert anything


@pytest.mark.parametrize(
    ("loss", "scale", "share"),
    [
        ("cross_entropy", 10.0, 0.0),
        ("cross_entropy", 50.0, 1.0),
        ("cross_entropy_float64", 50.0, 0.0),
        ("cross_entropy_float64", 500.0, 1.0),
    ],
)
def test_rows_collapse_once_their_loss_is_zero_with_outputs_in_single_precision(
    tiny_run: Any, tmp_path: Path, loss: str, scale: float, share: float
) -> None:
    """The output at the label is half of the scale, 5, 25 or 250, and the others are 0."""
    W, V = np.zeros((6, 9)), np.zeros((9, 3))
    for a in range(3):
        for b in range(3):
            node = 3 * a + b
            W[a, node] = W[3 + b, node] = 0.5
            V[node, (a + b) % 3] = scale
    W -= 0.25  # with ReLU a node is active for one pair of operands alone
    np.savez(tmp_path / "w.npz", W=W, V=V)
    options = ["task.order=3", "network.width=9", "network.activation=relu", f"loss={loss}", "max_steps=1"]
    run = tiny_run(*options, ON, f"network.initial_weights={tmp_path / 'w.npz'}")
    assert run.rows[0]["circuits/softmax_collapse"] == share


def test_a_task_without_a_group_keeps_the_columns_that_need_none(
    tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    row = tiny_run(ON, "task.name=expression", "task.modulus=7", "task.expression=x", "max_steps=1").rows[0]
    assert {name for name in row if name.startswith("circuits/")} == {
        "circuits/weight_norm",
        "circuits/softmax_collapse",
    }
    assert "circuits: this task is no group" in capsys.readouterr().err


def test_it_is_off_by_default() -> None:
    assert not [callback for callback in build_callbacks({}) if isinstance(callback, Circuits)]
