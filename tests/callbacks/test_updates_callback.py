"""The update columns against differences of the weights of consecutive rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

UPDATES = ["hidden", "output", "hidden_cosine_distance", "output_cosine_distance"]


def vectors(run: Any, step: int) -> dict[str, Tensor]:
    """Each role's matrices of a row as one vector of numbers."""
    weights = run.seen[step].weights
    roles = {"hidden": sorted(name for name in weights if name[0] in "WH"), "output": ["V"]}
    return {
        role: torch.cat([torch.cat([weights[name].real.flatten(), weights[name].imag.flatten()])
                         if weights[name].is_complex() else weights[name].flatten() for name in names])
        for role, names in roles.items()
    }  # fmt: skip


def assert_update(run: Any, row: dict[str, float], before: int) -> None:
    """The columns of ``row`` describe the update from the weights of step ``before`` to its own."""
    old, new = vectors(run, before), vectors(run, int(row["step"]))
    for role in ("hidden", "output"):
        assert row[f"weights/{role}_norm"] == pytest.approx(new[role].norm().item(), rel=1e-12)
        length = ((new[role] - old[role]).norm() / old[role].norm()).item()
        assert row[f"update/{role}"] == pytest.approx(length, rel=1e-10)
        distance = 1 - (old[role] @ new[role] / old[role].norm() / new[role].norm()).item()
        assert row[f"update/{role}_cosine_distance"] == pytest.approx(distance, rel=1e-6, abs=1e-13)


def eigengap(updates: list[Tensor]) -> float:
    """By singular values of the 20 updates as they are."""
    singular = torch.linalg.svdvals(torch.stack(updates))
    return (singular[1] / singular[2]).item() ** 2


def each_its_own(params: list[Tensor], lr: float = 0.1, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """A group for each parameter: lr, lr/2, lr/4, …"""
    groups = [{"params": [p], "lr": lr / 2**index} for index, p in enumerate(params)]
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay)


class WithoutRate(torch.optim.SGD):
    """Its groups have no learning rate."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, lr=1e-3)
        for group in self.param_groups:
            del group["lr"]

    def step(self, closure: Any = None) -> None:
        pass


def rates(run: Any) -> list[dict[str, float]]:
    """The learning rates of each row, by what follows ``optimizer/``."""
    named = [name for name in run.rows[0] if name.startswith("optimizer/")]
    return [{name.removeprefix("optimizer/"): row[name] for name in named} for row in run.rows]


def test_every_parameter_group_of_a_role_has_its_learning_rate(tiny_run: Any) -> None:
    mine = "tests.callbacks.test_updates_callback:each_its_own"
    rows = rates(
        tiny_run(
            f"optimizer.hidden={{name: '{mine}', lr: 0.4}}",
            f"optimizer.output={{name: '{mine}', lr: 0.3}}",
            "network.hidden_layers=2",
            "scheduler={name: step, step_size: 2, gamma: 0.5}",
            "max_steps=3",
        )
    )
    first = {"hidden_lr": 0.4, "hidden_lr/1": 0.2, "hidden_lr/2": 0.1, "output_lr": 0.3}
    assert rows[0] == pytest.approx(first)
    assert rows[2] == pytest.approx({name: value / 2 for name, value in first.items()})


def test_an_optimizer_without_a_learning_rate_has_no_column_of_it(tiny_run: Any) -> None:
    mine = "tests.callbacks.test_updates_callback:WithoutRate"
    rows = rates(tiny_run(f"optimizer.hidden={{name: '{mine}'}}", "max_steps=1"))
    assert [set(row) for row in rows] == [{"output_lr"}] * 2


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["network.hidden_layers=2", "network.complex_weights=true"],
        ["network.trainable_embedding=true"],
        ["optimizer.hidden={name: muon}", "network.normalize_weights=true"],
        ["data.batch_size=6", "data.evaluate_every_n_steps=1"],
        ["network.readout=ridge"],
    ],
    ids=lambda value: ",".join(value),
)
def test_row_t_describes_the_update_that_led_to_its_weights_and_row_0_none(tiny_run: Any, overrides: list[str]) -> None:
    run = tiny_run(*overrides, "optimizer.lr=0.01")
    assert all(run.rows[0][f"update/{name}"] is None for name in UPDATES)
    for row in run.rows[1:]:
        assert_update(run, row, int(row["step"]) - 1)


def test_tiny_updates_keep_their_cosine_distance(tiny_run: Any) -> None:
    """1 minus a rounded cosine would be noise: the distance is about half the squared relative update."""
    run = tiny_run("optimizer.lr=1e-9", "max_steps=2", "optimizer.weight_decay=0")
    row = run.rows[2]
    old, new = vectors(run, 1)["hidden"], vectors(run, 2)["hidden"]
    across = (new - old) - (new - old) @ old / (old @ old) * old
    expected = (across.norm() / old.norm()).item() ** 2 / 2
    assert 0 < expected < 1e-13
    assert row["update/hidden_cosine_distance"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        (["data.batch_size=6", "data.evaluate_every_n_steps=4"], [0, 4, 8, 10]),
        (["data.evaluate_every_n_steps=4"], [0, 4, 8, 10]),
        (["data.batch_size=6", "data.evaluate_every_n_steps=4", "network.readout=ridge"], [0, 4, 8, 10]),
        (["data.evaluate_every_n_steps=log3"], [0, 1, 3, 5, 10]),
        (
            ["data.batch_size=6", "data.evaluate_every_n_steps=log", "network.readout=ridge"],
            [0, 1, 2, 3, 4, 6, 7, 8, 10],
        ),
    ],
    ids=lambda value: ",".join(map(str, value)),
)
def test_with_rows_further_apart_the_columns_describe_the_last_single_update(
    tiny_run: Any, overrides: list[str], rows: list[int]
) -> None:
    """The same run with a row each step shows the weights in between."""
    sparse = tiny_run(*overrides, "optimizer.lr=0.01")
    dense = tiny_run(*overrides, "optimizer.lr=0.01", "data.evaluate_every_n_steps=1")
    assert sparse.column("step") == rows
    for row in sparse.rows[1:]:
        step = int(row["step"])
        assert torch.equal(sparse.seen[step].weights["W"], dense.seen[step].weights["W"])
        assert_update(dense, row, step - 1)


@pytest.mark.parametrize("overrides", [[], ["network.hidden_layers=1", "network.complex_weights=true"]])
def test_the_eigengap_is_that_of_the_last_20_updates_and_empty_before_row_20(
    tiny_run: Any, overrides: list[str]
) -> None:
    run = tiny_run("max_steps=45", "optimizer.lr=0.01", *overrides)
    assert run.column("update/eigengap")[:20] == [None] * 20
    for t in range(20, 46):
        updates = [vectors(run, s)["hidden"] - vectors(run, s - 1)["hidden"] for s in range(t - 19, t + 1)]
        assert run.rows[t]["update/eigengap"] == pytest.approx(eigengap(updates), rel=1e-8)


def test_with_rows_further_apart_the_window_holds_the_single_updates_before_them(tiny_run: Any) -> None:
    options = ["optimizer.lr=0.01", "data.batch_size=6", "max_steps=62"]
    sparse = tiny_run(*options, "data.evaluate_every_n_steps=3")
    dense = tiny_run(*options, "data.evaluate_every_n_steps=1")
    rows = [step for step in sparse.column("step") if step > 0]
    updates = [vectors(dense, int(t))["hidden"] - vectors(dense, int(t) - 1)["hidden"] for t in rows]
    for index in range(len(rows)):
        value = sparse.rows[index + 1]["update/eigengap"]
        if index < 19:
            assert value is None
        else:
            assert value == pytest.approx(eigengap(updates[index - 19 : index + 1]), rel=1e-8)
    assert len(rows) == 21


def test_the_learning_rate_of_a_row_is_the_one_its_update_uses(tiny_run: Any) -> None:
    """Halved every third update; without momentum or decay the update shows it."""
    run = tiny_run(
        "scheduler={name: step, step_size: 3, gamma: 0.5}",
        "optimizer={lr: 0.5, weight_decay: 0, hidden: {name: sgd}, output: {name: sgd, lr: 0.1}}",
        "network.trainable_embedding=true",
    )
    assert run.column("optimizer/hidden_lr") == [0.5 * 0.5 ** (t // 3) for t in range(11)]
    assert run.column("optimizer/output_lr") == pytest.approx([0.1 * 0.5 ** (t // 3) for t in range(11)], rel=1e-12)
    assert run.column("optimizer/embedding_lr")[0] == 0.5
    for t in range(10):
        seen, rows = run.seen[t], run.data.train
        Y = torch.eye(7, dtype=torch.float64)[rows.labels] - 1 / 7
        error = seen.outputs - seen.outputs.mean(dim=1, keepdim=True) - Y
        gradient = 2 / len(rows) * seen.features.T @ (error - error.mean(dim=1, keepdim=True))
        change = vectors(run, t + 1)["output"] - vectors(run, t)["output"]
        torch.testing.assert_close(
            change, -run.rows[t]["optimizer/output_lr"] * gradient.flatten(), rtol=1e-8, atol=1e-12
        )


def test_a_ridge_readout_has_no_learning_rate(tiny_run: Any) -> None:
    run = tiny_run("network.readout=ridge", "max_steps=1")
    assert "optimizer/output_lr" not in run.rows[0]
    assert run.rows[0]["optimizer/hidden_lr"] == 1e-3


def test_at_zero_init_the_first_update_of_v_has_no_relative_size(tiny_run: Any) -> None:
    run = tiny_run("network.readout_init_scale=0", "max_steps=2")
    assert run.rows[1]["update/output"] is run.rows[1]["update/output_cosine_distance"] is None
    # With V = 0 no gradient reaches W: the weight decay alone moves it.
    assert run.rows[1]["update/hidden"] is not None
    assert_update(run, run.rows[2], 1)


def test_a_cadence_thins_the_columns_and_leaves_the_window_as_it_is(tiny_run: Any) -> None:
    options = ["max_steps=30", "optimizer.lr=0.01"]
    every, fifth = tiny_run(*options), tiny_run(*options, "callbacks.updates.every_n_steps=5")
    for row, whole in zip(fifth.rows, every.rows, strict=True):
        for name in ("weights/hidden_norm", "update/hidden", "update/eigengap"):
            assert row[name] == (whole[name] if row["step"] % 5 == 0 else None)
