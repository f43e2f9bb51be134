"""The gradient columns of a run against G_F written out from the weights of each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.gradient import Gradient
from li2_lightning.errors import InputError
from tests.conftest import cosine

COLUMNS = [
    "norm",
    "independence",
    "coupling",
    "residual_alignment",
    "readout_alignment",
    "readout_equilibrium",
    "effective_ridge",
]


def dense(run: Any, step: int) -> tuple[dict[str, float], Tensor]:
    """The columns of a row, and G_F, from features, outputs and V alone."""
    seen, rows = run.seen[step], run.data.train
    beta = run.module.network.config.output_scale
    F, V = seen.features - seen.features.mean(dim=0), seen.weights["V"]
    Y = torch.eye(seen.outputs.shape[1], dtype=torch.float64)[rows.labels]
    R = Y - seen.outputs
    R, Y = (R - R.mean(dim=0)).to(F.dtype), (Y - Y.mean(dim=0)).to(F.dtype)
    G = R @ (beta * V).mH
    values = {
        "norm": G.norm().item(),
        "independence": cosine(G, Y @ (Y.mT @ F)),
        "coupling": cosine(G, R @ (R.mT @ F)),
        "residual_alignment": cosine(R, Y),
        "readout_alignment": cosine(V, F.mH @ Y),
        "readout_equilibrium": cosine(V, F.mH @ R),
        "effective_ridge": (beta * (F.mH @ R).norm() / V.norm()).item(),
    }
    return values, G


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss=projected_mse", "network.output_scale=0.3"],
        ["loss=cross_entropy", "network.activation=relu", "network.hidden_layers=1"],
        ["network.complex_weights=true"],
        ["network.inner_product=true"],
        ["network.batch_norm=true", "network.activation=silu"],
        ["data.batch_size=6", "data.evaluate_every_n_steps=4"],
        ["network={name: transformer, activation: gelu}"],
    ],
    ids=lambda value: ",".join(value),
)
def test_every_column_of_every_row_is_the_dense_one(tiny_run: Any, overrides: list[str]) -> None:
    """Whatever the training loss, G_F is that of Eq. 1."""
    run = tiny_run("optimizer.lr=0.02", *overrides)
    pairs = Gradient()._pairs(run.seen[0].weights["V"])
    for row in run.rows:
        values, G = dense(run, int(row["step"]))
        found = {name: row[f"gradient/{name}"] for name in COLUMNS}
        assert found == pytest.approx(values, rel=1e-8, abs=1e-11)
        if row["step"] in (0, 10):
            left, right = G[:, pairs[:, 0]], G[:, pairs[:, 1]]
            cosines = (left.conj() * right).sum(dim=0).abs() / left.norm(dim=0) / right.norm(dim=0)
            assert row["gradient/node_coupling"] == pytest.approx(cosines.median().item(), rel=1e-9)
        else:
            assert row["gradient/node_coupling"] is None


def test_at_zero_init_the_gradient_is_zero_and_its_cosines_are_empty(tiny_run: Any) -> None:
    run = tiny_run("network.readout_init_scale=0", "max_steps=2")
    row = run.rows[0]
    assert row["gradient/norm"] == 0
    empty = {name for name in (*COLUMNS, "node_coupling") if row.get(f"gradient/{name}") is None}
    assert empty == {*COLUMNS, "node_coupling"} - {"norm", "residual_alignment"}
    assert all(run.rows[1][f"gradient/{name}"] is not None for name in COLUMNS)


@pytest.mark.parametrize(
    ("overrides", "all_columns", "node_coupling"),
    [
        (["callbacks.gradient.every_n_steps=4"], [0, 4, 8, 10], [0, 10]),
        (["callbacks.gradient={every_n_steps: 2, pairs_every_n_steps: 4}"], [0, 2, 4, 6, 8, 10], [0, 4, 8, 10]),
        # Rows 0, 3, 6, 9, 10: due at the first row at or after each multiple.
        (["callbacks.gradient={every_n_steps: 5}", "data.evaluate_every_n_steps=3"], [0, 6, 10], [0, 10]),
        (["callbacks.gradient={every_n_steps: log3, pairs_every_n_steps: log1}"], [0, 1, 3, 5, 10], [0, 1, 10]),
        (["callbacks.gradient={every_n_steps: log1, pairs_every_n_steps: 4}"], [0, 1, 10], [0, 10]),
    ],
)
def test_columns_stand_at_their_cadence_and_in_the_last_row(
    tiny_run: Any, overrides: list[str], all_columns: list[int], node_coupling: list[int]
) -> None:
    run = tiny_run(*overrides)
    assert [row["step"] for row in run.rows if row["gradient/coupling"] is not None] == all_columns
    assert [row["step"] for row in run.rows if row["gradient/node_coupling"] is not None] == node_coupling


@pytest.mark.parametrize("width", [2, 3, 50])
def test_the_pairs_are_of_different_nodes_and_always_the_same(width: int) -> None:
    pairs = Gradient(pairs=300)._pairs(torch.zeros(width, 4))
    assert pairs.shape == (300, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert pairs.unique().tolist() == list(range(width))
    assert torch.equal(pairs, Gradient(pairs=300)._pairs(torch.ones(width, 4)))


def test_a_saved_cadence_goes_on() -> None:
    before, after = Gradient(every_n_steps=4), Gradient(every_n_steps=4)
    due = [before.cadence.due(t) for t in range(3)]
    before.pairs_cadence.due(0)
    after.load_state_dict(before.state_dict())
    assert due + [after.cadence.due(t) for t in range(3, 9)] == [t % 4 == 0 for t in range(9)]
    assert not after.pairs_cadence.due(9)
    assert after.pairs_cadence.due(10)


@pytest.mark.parametrize("option", ["every_n_steps", "pairs", "pairs_every_n_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_a_count_that_is_no_positive_integer_is_refused(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"callbacks\.gradient\.{option}={value!r} does not fit; it is an integer"):
        Gradient(**{option: value})
