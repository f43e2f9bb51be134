"""Ranks of features and weights, and the alignment of the tangent kernel: against dense matrices and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from callbacks.spectra import Spectra, network_kernel
from li2_lightning.errors import InputError
from li2_lightning.theory.measures import kernel_alignment

ON = "callbacks.spectra.every_n_steps=1"


def ranks(matrix: Tensor) -> tuple[float, float]:
    p = torch.linalg.svdvals(matrix).square()
    p = p / p.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum())), float(1 / p.square().sum())


@pytest.mark.parametrize(
    "overrides",
    [
        ["network.width=4"],
        ["network.width=30", "network.shared_embedding=true", "network.output_scale=2"],
        ["network.width=4", "network.complex_weights=true"],
        pytest.param(
            ["network.width=4", "network.activation=silu", "task.order=4", "task.num_operands=3"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["network.width=4", "network.hidden_layers=1", "network.activation=relu"], marks=pytest.mark.slow),
    ],
    ids=",".join,
)
def test_columns_are_those_of_dense_matrices(tiny_run: Any, overrides: list[str]) -> None:
    run = tiny_run(*overrides, ON, "max_steps=1", "optimizer.lr=0.1")
    network, tokens, labels = run.module.network, run.data.train.tokens, run.data.train.labels
    for row in run.rows:
        seen = run.seen[int(row["step"])]
        W = seen.weights["W"]
        for name, matrix in (
            ("features", seen.features - seen.features.mean(dim=0)),
            ("weights", W.repeat(2, 1) if network.config.shared_embedding else W),
        ):
            rank, participation = ranks(matrix)
            assert row[f"spectra/{name}_effective_rank"] == pytest.approx(rank, rel=1e-9)
            assert row[f"spectra/{name}_participation"] == pytest.approx(participation, rel=1e-9)
    closed = not (network.config.complex_weights or network.config.hidden_layers)
    assert ("spectra/kernel_alignment" in run.rows[-1]) == closed
    if closed:
        outputs = network.compute_features(tokens).last @ (network.config.output_scale * network.V)
        J = torch.stack([
            torch.cat([g.flatten() for g in torch.autograd.grad(value, (network.W, network.V), retain_graph=True)])
            for value in outputs.flatten()
        ]).view(len(labels), -1, network.W.numel() + network.V.numel())  # fmt: skip
        theta = torch.einsum("icp,jcp->ij", J, J)
        kernel = network_kernel(network, tokens, torch.arange(len(labels)))
        torch.testing.assert_close(kernel.columns, theta, rtol=1e-9, atol=1e-12)
        P = torch.eye(len(labels)).double() - 1 / len(labels)
        left, right = P @ theta @ P, P @ (labels[:, None] == labels).double() @ P
        cosine = float((left * right).sum() / left.norm() / right.norm())
        assert run.rows[-1]["spectra/kernel_alignment"] == pytest.approx(cosine, rel=1e-9)


def test_an_estimate_uses_the_same_columns_in_every_run(tiny_run: Any) -> None:
    options = ["network.width=4", "callbacks.spectra.kernel_columns=9", ON, "max_steps=1"]
    one, two = (tiny_run(*options, f"name=run-{name}") for name in "ab")
    assert one.column("spectra/kernel_alignment") == two.column("spectra/kernel_alignment")
    labels = one.data.train.labels
    counts = functional.one_hot(labels).sum(dim=0).double()
    kernel = network_kernel(one.module.network, one.data.train.tokens, torch.arange(len(labels)))
    assert one.rows[-1]["spectra/kernel_alignment"] != pytest.approx(kernel_alignment(kernel, labels, counts).item())


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("network.batch_norm=true", "network.batch_norm"),
        ("network={name: transformer, activation: relu}", "no two-layer"),
    ],
)
def test_a_network_without_a_closed_form_says_so(
    tiny_run: Any, capsys: pytest.CaptureFixture[str], override: str, reason: str
) -> None:
    run = tiny_run(override, ON, "max_steps=1")
    assert run.rows[0]["spectra/features_participation"] is not None
    assert "spectra/kernel_alignment" not in run.rows[0]
    assert f"closed form here ({'it is ' if 'no ' in reason else ''}{reason}" in capsys.readouterr().err


def test_options_are_positive_integers() -> None:
    for option in ("every_n_steps", "kernel_columns"):
        with pytest.raises(InputError, match=rf"callbacks\.spectra\.{option}=0 does not fit"):
            Spectra(**{option: 0})
