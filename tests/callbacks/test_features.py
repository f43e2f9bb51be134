"""Purity and coverage against projectors written out by hand, for a cyclic and a non-Abelian group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from li2_lightning import groups


def fourier_projectors(M: int) -> list[Tensor]:
    """One for each frequency k = 1 … M/2 of Z_M: P[x, y] = (2/M)cos(2πk(x−y)/M), half of it at M/2."""
    gap = torch.arange(M)[:, None] - torch.arange(M)[None, :]
    frequencies = range(1, M // 2 + 1)
    return [(1 if 2 * k == M else 2) / M * torch.cos(2 * torch.pi * k * gap.double() / M) for k in frequencies]


def s3_projectors() -> list[Tensor]:
    """The sign, and the rest of what has mean zero. Transpositions are the three elements of order two."""
    group = groups.symmetric(3)
    squares = np.diagonal(group.table)
    odd = torch.tensor([squares[g] == group.identity and g != group.identity for g in range(6)])
    assert odd.sum() == 3
    sign = torch.where(odd, -1.0, 1.0).double()
    onto_sign = torch.outer(sign, sign) / 6
    return [onto_sign, torch.eye(6, dtype=torch.float64) - 1 / 6 - onto_sign]


def shares(W: Tensor, projectors: list[Tensor]) -> Tensor:
    """‖Π_k w_j‖²/‖w_j‖², blocks × nodes, over the operands' parts together and without the constant part."""
    parts = torch.stack([
        sum((P.to(W.dtype) @ half).abs().square().sum(dim=0) for half in W.split(len(P)))  # type: ignore[misc]
        for P in projectors
    ])  # fmt: skip
    centred = sum((half - half.mean(dim=0)).abs().square().sum(dim=0) for half in W.split(len(projectors[0])))
    return parts / centred


CASES: list[tuple[list[str], list[Tensor]]] = [
    (["task.order=7"], fourier_projectors(7)),
    (["task.order=8"], fourier_projectors(8)),
    (["task.name=symmetric", "task.degree=3"], s3_projectors()),
    (["task.name=symmetric", "task.degree=3", "task.num_operands=3"], s3_projectors()),
    (["task.order=7", "network.complex_weights=true"], fourier_projectors(7)),
    (["task.order=7", "network.trainable_embedding=true"], fourier_projectors(7)),
    (["task.order=7", "network.inner_product=true", "network.shared_embedding=true"], fourier_projectors(7)),
]


@pytest.mark.parametrize(("overrides", "projectors"), CASES, ids=[",".join(case[0]) for case in CASES])
def test_purity_and_coverage_are_those_of_explicit_projectors(
    tiny_run: Any, overrides: list[str], projectors: list[Tensor]
) -> None:
    assert torch.allclose(sum(projectors), torch.eye(len(projectors[0])).double() - 1 / len(projectors[0]), atol=1e-12)
    run = tiny_run(*overrides, "network.width=4", "max_steps=5", "optimizer.lr=0.1")
    coverages = set()
    for row in run.rows:
        w = run.seen[int(row["step"])].weights
        M = len(projectors[0])
        W = torch.cat([w["E"] @ half for half in w["W"].split(M)]) if "E" in w else w["W"]
        found = shares(W, projectors)
        assert row["features/purity"] == pytest.approx(found.max(dim=0).values.mean().item(), rel=1e-9)
        assert row["features/coverage"] == (found > 0.5).any(dim=1).sum().item()
        coverages.add(row["features/coverage"])
    assert max(coverages) > 0


def test_a_pure_node_has_purity_one_and_one_without_weights_does_not_count(tiny_run: Any, tmp_path: Path) -> None:
    """Node by node: frequency 1 over a constant, frequency 3 in one half, 1 with a bit of 2 (share .8), nothing."""
    angle = 2 * np.pi * np.arange(7) / 7
    one, two, three = (np.cos(k * angle) for k in (1, 2, 3))
    zero = 0 * angle
    columns = [(5 + one, np.sin(angle)), (three, zero), (one, two / 2), (zero, zero)]
    W = np.stack([np.concatenate(pair) for pair in columns], axis=1)
    np.savez(tmp_path / "w.npz", W=W, V=np.ones((4, 7)))
    run = tiny_run(f"network.initial_weights={tmp_path / 'w.npz'}", "network.width=4", "max_steps=1")
    assert run.rows[0]["features/purity"] == pytest.approx((1 + 1 + 0.8) / 3, rel=1e-12)
    assert run.rows[0]["features/coverage"] == 2


def test_a_task_that_is_no_group_leaves_the_columns_out_and_says_so(
    tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run("task.name=expression", "task.modulus=7", "task.expression=x", "max_steps=1")
    assert not [name for name in run.rows[0] if name in ("features/purity", "features/coverage")]
    assert "features: this task is no group" in capsys.readouterr().err


def test_a_table_or_a_word_that_is_no_group_is_trained_and_says_why(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "monoid.npy", np.minimum.outer(np.arange(5), np.arange(5)))
    tasks = {
        "(0 has no inverse)": ["task.name=cayley_table", f"task.path={tmp_path / 'monoid.npy'}"],
        "this task is no group, so": ["task.name=symmetric", "task.degree=3", "task.word=abA"],
    }
    for index, (words, task) in enumerate(tasks.items()):
        run = tiny_run(*task, "max_steps=2", "optimizer.lr=0.1", f"name=run-{index}")
        assert run.rows[-1]["train/loss"] < run.rows[0]["train/loss"]
        assert not {"features/purity", "features/coverage", "energy/relative"} & run.rows[0].keys()
        assert words in capsys.readouterr().err


def test_a_transformer_leaves_the_columns_out_and_says_so(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run("network={name: transformer, activation: relu}", "max_steps=1")
    assert "features/purity" not in run.rows[0]
    assert "features: this network has no nodes on the one-hots" in capsys.readouterr().err
