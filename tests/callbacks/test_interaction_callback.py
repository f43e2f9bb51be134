"""The interaction columns: which rows have them, with which η, against the whole inverse."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.interaction import Interaction
from li2_lightning.errors import InputError
from li2_lightning.theory.stages import Transition

SHARE, STRENGTH = "interaction/repelled_share", "interaction/repulsion"
PAIRS = 12
# Its own instance, whether or not the config has one of its own.
OFF = "callbacks={interaction: {enabled: false}, report: {enabled: false}}"


def dense(F: Tensor, ridge: float) -> tuple[float, float]:
    """Both columns from the whole inverse and all cosines."""
    F = F - F.mean(dim=0)
    K = F.shape[1]
    B = torch.linalg.inv(F.mH @ F + ridge * torch.eye(K, dtype=F.dtype))
    directions = F / torch.linalg.vector_norm(F, dim=0)
    cosines, B = ((matrix.real if matrix.is_complex() else matrix) for matrix in (directions.mH @ directions, B))
    pairs = sorted(((float(cosines[j, k]), j, k) for j in range(K) for k in range(j + 1, K)), reverse=True)
    chosen = [(j, k) for cosine, j, k in pairs[:PAIRS] if cosine > 0]
    entries = [float(B[j, k] / (B[j, j] * B[k, k]).sqrt()) for j, k in chosen]
    return sum(entry < 0 for entry in entries) / len(entries), -sum(entries) / len(entries)


@pytest.mark.parametrize(
    ("overrides", "ridge"),
    [
        (["optimizer.weight_decay=0.01"], "decay"),
        (["optimizer.weight_decay=0.01", "loss=projected_mse", "network.width=30"], "decay"),
        (["optimizer.weight_decay=0.01", "network.complex_weights=true"], "decay"),
        (["optimizer.weight_decay=0.01", "network.output_scale=3"], "decay"),
        (["optimizer.weight_decay=0.01", "network.hidden_layers=1", "network.activation=relu"], "decay"),
        (["optimizer.weight_decay=0.01", "data.batch_size=5"], "decay"),
        (["optimizer.weight_decay=0"], "measured"),
        (["optimizer.weight_decay=0", "network.output_scale=3"], "measured"),
        (["optimizer.weight_decay=0.01", "optimizer.output.name=adamw"], "measured"),
        (["optimizer.weight_decay=0.01", "loss=cross_entropy"], "measured"),
        (["network.readout=ridge", "network.ridge=0.7", "network.output_scale=2"], "readout"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else value,
)
def test_the_columns_are_those_of_the_whole_inverse(tiny_run: Any, overrides: list[str], ridge: str) -> None:
    run = tiny_run(OFF, "max_steps=4", "optimizer.lr=0.05", *overrides, callbacks=[Interaction(2, PAIRS)])
    n, beta = len(run.data.train.labels), run.module.network.config.output_scale
    for row in run.rows:
        if row["step"] % 2 and "data.batch_size=5" not in overrides:
            assert row[SHARE] is None
            assert row[STRENGTH] is None
        if row[SHARE] is None:
            continue
        eta = {
            "decay": n * 0.01 / 2 / beta**2,
            "measured": (row["gradient/effective_ridge"] or math.nan) / beta**2,
            "readout": 0.7 / beta**2,
        }[ridge]
        share, strength = dense(run.seen[int(row["step"])].features, eta)
        assert row[SHARE] == pytest.approx(share, abs=1e-12)
        assert row[STRENGTH] == pytest.approx(strength, abs=1e-8)
    assert run.rows[0][SHARE] is not None


@pytest.mark.parametrize("overrides", [[], ["network.output_scale=3"], ["network.readout=ridge"]], ids=str)
def test_another_eta_takes_the_place_of_every_other(tiny_run: Any, overrides: list[str]) -> None:
    run = tiny_run(OFF, "max_steps=1", *overrides, callbacks=[Interaction(1, PAIRS, ridge=0.03)])
    for row in run.rows:
        share, strength = dense(run.seen[int(row["step"])].features, 0.03)
        assert row[SHARE] == pytest.approx(share, abs=1e-12)
        assert row[STRENGTH] == pytest.approx(strength, abs=1e-8)


class Declares(Interaction):
    """As if the stages had declared a transition at row 3."""

    def on_row(self, trainer: Any, module: Any, row: dict[str, Any]) -> None:
        if row["step"] == 3:
            self.on_stage_transition(trainer, module, Transition(1, 2, 3, 3, 0, {}))


def test_rows_are_0_the_cadence_the_one_after_a_transition_and_the_last(tiny_run: Any) -> None:
    run = tiny_run(OFF, "max_steps=9", callbacks=[Declares(8, PAIRS)])
    assert [row["step"] for row in run.rows if row[STRENGTH] is not None] == [0, 4, 8, 9]


def test_a_transition_waits_through_a_checkpoint() -> None:
    before, after = Interaction(), Interaction()
    before.cadence.due(7)
    before.on_stage_transition(None, None, None)  # type: ignore[arg-type]
    after.load_state_dict(before.state_dict())
    logged: list[str] = []
    after.measure = lambda module, state: {SHARE: 1.0}  # type: ignore[method-assign]
    for step in (8, 9):
        state = SimpleNamespace(
            step=step,
            is_last=False,
            log_all=lambda columns, step=step: logged.extend(f"{step} {name}" for name in columns),
        )
        after.on_step_state(None, None, state)  # type: ignore[arg-type]
    assert logged == [f"8 {SHARE}"]


def test_a_row_without_features_has_empty_cells(tiny_run: Any) -> None:
    run = tiny_run(OFF, "max_steps=1", "network.width=1", callbacks=[Interaction(1)])
    assert all(row.get(name) is None for row in run.rows for name in (SHARE, STRENGTH))


def test_options_are_positive() -> None:
    with pytest.raises(InputError, match=r"callbacks\.interaction\.pairs=0 does not fit"):
        Interaction(pairs=0)
    with pytest.raises(InputError, match=r"callbacks\.interaction\.every_n_steps=0 does not fit"):
        Interaction(every_n_steps=0)
    for ridge in (0.0, -1.0, math.inf, math.nan, True, "x", [1.0]):
        with pytest.raises(InputError, match=r"callbacks\.interaction\.ridge=.* a positive number, or null"):
            Interaction(ridge=ridge)  # type: ignore[arg-type]
