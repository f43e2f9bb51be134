"""Optimizers that train at one point and are evaluated at another: rows and checkpoints are of the eval point."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from li2_lightning.errors import InputError
from optimizers import CompositeOptimizer, find, registry
from optimizers.filters.gradient_filter import GradientFilter
from optimizers.modes import has_eval_point

INSTALLED = importlib.util.find_spec("pytorch_optimizer") is not None
extra = pytest.mark.skipif(not INSTALLED, reason="the optional extra is not installed")


class Averaging(SGD):
    """Evaluated near the average of its weights. It starts at the eval point, and its way back rounds to six digits."""

    def __init__(self, params: Any, lr: float = 0.5) -> None:
        super().__init__(params, lr, momentum=0.5)
        for group in self.param_groups:
            group["is_training"] = False

    def _move(self, is_training: bool, share: float) -> None:
        for group in self.param_groups:
            for p in group["params"] if group["is_training"] != is_training else ():
                if "average" in self.state[p]:
                    p.data.lerp_(self.state[p]["average"], share)
            group["is_training"] = is_training

    def train(self) -> None:
        self._move(True, 1 - 1 / (1 - 0.999999))

    def eval(self) -> None:
        self._move(False, 0.999999)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert all(group["is_training"] for group in self.param_groups)
        super().step()
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            self.state[p].setdefault("average", p.clone()).lerp_(p, 0.1)


def wrapped(params: Any, lr: float = 0.01) -> Optimizer:
    """A wrapper of the extra, whose param_groups are a property and which does not call torch's constructor."""
    return importlib.import_module("pytorch_optimizer").ScheduleFreeWrapper(Adam(params, lr))  # type: ignore[no-any-return]


OPTIMIZERS = [
    "averaging",
    pytest.param("schedulefreesgd", marks=extra),
    pytest.param("schedulefreeadamw", marks=extra),
    *(pytest.param(name, marks=[extra, pytest.mark.slow]) for name in ("wrapped", "schedulefreeradam", "splus")),
]
RATES = {"averaging": 0.5, "wrapped": 0.02, "schedulefreesgd": 2.0, "schedulefreeadamw": 0.05, "splus": 0.05}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.OPTIMIZERS._entries, "averaging", Averaging)
    monkeypatch.setitem(registry.OPTIMIZERS._entries, "wrapped", wrapped)


def chosen(name: str) -> list[str]:
    """Everything is trained by it."""
    return [f"optimizer.{role}={{name: {name}, lr: {RATES.get(name, 0.1)}}}" for role in ("hidden", "output")]


def by_hand(name: str, run: Any, steps: int) -> list[dict[str, float]]:
    """The losses at the eval point, and at the train point, of a loop that knows nothing of ours but the network."""
    network, loss, train, test = run.module.network, run.module.loss, run.data.train, run.data.test
    with torch.no_grad():
        for key, weight in network.named_parameters():
            weight.copy_(run.seen[0].weights[key])
    optimizers = [find(name)([p], lr=RATES.get(name, 0.1)) for p in (network.W, network.V)]

    def value(rows: Any) -> Tensor:
        # The loss of projected_mse needs the training rows' mean outputs for other rows, that of mse nothing.
        return loss.rows(network(rows.tokens).outputs, rows.labels).mean()

    found = []
    for step in range(steps + 1):
        at_train = value(train)
        if step > 0:
            for optimizer in optimizers:
                optimizer.eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            found.append({"train": value(train).item(), "test": value(test).item(), "elsewhere": at_train.item()})
        for optimizer in optimizers:
            optimizer.train()  # type: ignore[attr-defined]
            optimizer.zero_grad()
        value(train).backward()
        for optimizer in optimizers:
            optimizer.step()
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_row_has_the_losses_of_the_eval_point_as_a_loop_by_hand_finds_them(tiny_run: Any, name: str) -> None:
    run = tiny_run(*chosen(name), "optimizer.weight_decay=null")
    expected = by_hand(name, run, 10)
    for row, values in zip(run.rows, expected, strict=True):
        # The loop's way back to the train point rounds, ours does not.
        assert row["train/loss"] == pytest.approx(values["train"], rel=1e-6)
        assert row["test/loss"] == pytest.approx(values["test"], rel=1e-6)
    assert abs(expected[-1]["elsewhere"] / expected[-1]["train"] - 1) > 1e-4


def without_times(run: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in run.rows]


def load(run: Any, row: int) -> Any:
    return torch.load(run.directory / "checkpoints" / f"row-{row:06d}.ckpt", weights_only=True)


EVERY = "callbacks.checkpoint={every_n_steps: 1, keep: 99}"
MINI = ["data.batch_size=6", "data.evaluate_every_n_steps=3"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("averaging", [], marks=pytest.mark.slow),
        ("averaging", MINI),
        pytest.param("averaging", [*MINI, "network.readout=ridge"], marks=pytest.mark.slow),
        pytest.param("wrapped", MINI, marks=[extra, pytest.mark.slow]),
        pytest.param("schedulefreeadamw", MINI, marks=extra),
        pytest.param("schedulefreesgd", ["scheduler={name: step, step_size: 4}"], marks=[extra, pytest.mark.slow]),
        pytest.param("splus", [], marks=[extra, pytest.mark.slow]),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tiny_run: Any, tmp_path: Path, name: str, options: list[str]
) -> None:
    run = tiny_run(*chosen(name), EVERY, *options)
    checkpoint = run.directory / "checkpoints" / "row-000006.ckpt"
    resumed = tiny_run(*chosen(name), EVERY, *options, f"output_dir={tmp_path / 'b'}", f"resume={checkpoint}")
    assert set(resumed.seen) == {step for step in run.seen if step > 6}
    assert without_times(resumed) == without_times(run)
    one, other = load(run, 10), load(resumed, 10)
    for part in ("state_dict", "train_point"):
        pair = [held if part in held else held["li2_lightning"] for held in (one, other)]
        assert pair[0][part].keys() == pair[1][part].keys()
        assert all(torch.equal(value, pair[1][part][key]) for key, value in pair[0][part].items())


def test_checkpoints_hold_the_weights_of_the_eval_point_and_so_does_the_network_in_the_end(tiny_run: Any) -> None:
    run = tiny_run(*chosen("averaging"), EVERY)
    # The average begins with the first update.
    for step in range(2, 11):
        held = load(run, step)
        for name, weight in run.seen[step].weights.items():
            assert torch.equal(held["state_dict"][f"network.{name}"], weight)
            assert not torch.equal(held["li2_lightning"]["train_point"][name], weight)
    for name, weight in run.module.network.named_parameters():
        assert torch.equal(run.seen[10].weights[name], weight)


def test_how_often_it_is_measured_does_not_move_the_trajectory(tiny_run: Any) -> None:
    """The way back from the eval point rounds, and is taken once a row."""
    often, seldom = (tiny_run(*chosen("averaging"), f"data.evaluate_every_n_steps={n}") for n in (1, 5))
    for step in (5, 10):
        for name, weight in often.seen[step].weights.items():
            assert torch.equal(seldom.seen[step].weights[name], weight)
        for column in ("update/hidden", "update/output", "gradient/norm", "gradient/effective_ridge"):
            assert seldom.rows[step // 5][column] == pytest.approx(often.rows[step][column], rel=1e-12)


def test_update_columns_are_those_between_two_eval_points(tiny_run: Any) -> None:
    run = tiny_run(*chosen("averaging"))
    for step in range(1, 11):
        before, after = run.seen[step - 1].weights["W"], run.seen[step].weights["W"]
        expected = ((after - before).norm() / before.norm()).item()
        assert run.rows[step]["update/hidden"] == pytest.approx(expected, rel=1e-10)


def test_another_optimizer_beside_it_and_filters_around_it(tiny_run: Any) -> None:
    """Their weights have one point, the average's two; a filter has the modes of what it stands before."""
    inner = "{name: slow_gradients, inner: averaging, lr: 0.5}"
    run = tiny_run(f"optimizer.hidden={inner}", "optimizer.output={name: adam}", EVERY)
    held = load(run, 10)
    train_point = held["li2_lightning"]["train_point"]
    assert not torch.equal(held["state_dict"]["network.W"], train_point["W"])
    assert torch.equal(held["state_dict"]["network.V"], train_point["V"])


def test_only_an_optimizer_with_both_methods_has_an_eval_point() -> None:
    def weights() -> list[Tensor]:
        return [torch.nn.Parameter(torch.ones(2, 3))]

    plain, averaging = Adam(weights()), Averaging(weights())
    for made, expected in (
        (plain, False),
        (averaging, True),
        (GradientFilter(plain), False),
        (GradientFilter(averaging), True),
        (CompositeOptimizer({"hidden": plain}), False),
        (CompositeOptimizer({"hidden": plain, "output": averaging}), True),
    ):
        assert has_eval_point(made) is expected
        assert hasattr(made, "eval") is expected


def test_normalized_weights_are_refused_with_it(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^network\.normalize_weights=true .* evaluated at other weights, .*[^.]\.$"):
        tiny_run(*chosen("averaging"), "network.normalize_weights=true", f"output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_run_without_it_has_no_second_point_in_its_checkpoints(tiny_run: Any) -> None:
    assert "train_point" not in load(tiny_run(), 10)["li2_lightning"]
