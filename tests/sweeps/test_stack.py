"""Runs that are trained together are the runs that they are alone."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import train
from callbacks.diagnostic import Diagnostic
from li2_lightning.clock import clock
from li2_lightning.config.schema import Config
from li2_lightning.errors import DivergenceError, Interrupted
from li2_lightning.losses import ClassCentredMSE
from li2_lightning.runs.directory import RunResult
from tests.conftest import added

TOLERANCE = 1e-10
BASE = {
    "max_steps": 24,
    "network": {"width": 16},
    "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}, "checkpoint": {"every_n_steps": 8}},
    "logger": {"mode": "disabled"},
    "trainer": {"accelerator": "cpu", "precision": "64-true"},
}


@pytest.fixture
def configs(tmp_path: Path) -> Callable[..., list[Config]]:
    """``configs("a", ["seed=0", "seed=1"], "loss=mse")``: a config for each run, with their folder ``a``."""

    def build(folder: str, each: Sequence[str], *shared: str) -> list[Config]:
        made = []
        for own in each:
            task = {} if any(text.startswith("task.order") for text in (*shared, own)) else {"task": {"order": 7}}
            overrides = OmegaConf.from_dotlist([*shared, *own.split()])
            made.append(
                train.read_config(OmegaConf.merge(BASE, task, {"output_dir": str(tmp_path / folder)}, overrides))
            )
        return made

    return build


def rows(result: RunResult | Exception) -> list[dict[str, str]]:
    assert isinstance(result, RunResult), result
    return read(result.directory)


def read(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def assert_same(some: list[dict[str, str]], others: list[dict[str, str]], tolerance: float = TOLERANCE) -> None:
    assert [row["step"] for row in some] == [row["step"] for row in others]
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name, cell in one.items():
            assert (cell == "") == (other[name] == ""), (name, one["step"])
            if cell != "":
                assert math.isclose(float(cell), float(other[name]), rel_tol=tolerance, abs_tol=tolerance), (
                    name, one["step"], cell, other[name],
                )  # fmt: skip


EACH = ["seed=0 optimizer.lr=0.01", "seed=1 optimizer.lr=0.003 optimizer.weight_decay=0.01", "seed=2"]


def same_as_alone(
    configs: Any,
    *shared: str,
    each: Sequence[str] = EACH,
    read: Callable[[Any], list[dict[str, str]]] = rows,
    tolerance: float = TOLERANCE,
) -> list[tuple[Any, Any]]:
    """Train some runs alone and in a stack, and compare their rows; returns both results of each run."""
    alone = [train.run(config) for config in configs("alone", each, *shared)]
    pairs = list(zip(alone, train.run_stack(configs("together", each, *shared)), strict=True))
    for one, other in pairs:
        assert_same(read(one), read(other), tolerance)
    return pairs


KINDS = [
    "",
    "data.batch_size=6",
    "data.batch_size=6 data.evaluate_every_n_steps=4 loss=cross_entropy",
    "network.readout=ridge network.activation=relu",
    "network.complex_weights=true network.activation=silu loss=projected_mse",
    "network.hidden_layers=2 network.residual=false network.activation=relu",
    "network.hidden_layers=1 network.batch_norm=true optimizer.hidden.name=muon scheduler={name: cosine}",
    "network.inner_product=true network.normalize_weights=true network.output_scale=0.5",
    "network.trainable_embedding=true network.shared_embedding=true callbacks.gram.exact=true task.num_operands=3",
    "optimizer.hidden={name: slow_gradients, inner: muon} optimizer.output.name=adamw",
    "optimizer.hidden.name=normuon optimizer.output={name: scion, norm: sign} optimizer.hidden.orthogonalization=svd",
    "optimizer.hidden={name: scion, steps: 2} optimizer.output.name=prodigy",
    "optimizer.hidden.name=schedule_free optimizer.output.name=schedule_free",
]


@pytest.mark.parametrize("shared", [*KINDS[:3], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[3:])])
def test_every_column_is_that_of_the_run_alone(shared: str, configs: Any) -> None:
    for one, other in same_as_alone(configs, *split(shared)):
        assert_same_files(one.directory, other.directory)


def without_eigengap(result: RunResult | Exception) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name != "update/eigengap"} for row in rows(result)]


def split(shared: str) -> list[str]:
    """Overrides that are separated by spaces; a space within braces is part of its override."""
    found: list[str] = []
    for part in shared.split():
        if found and found[-1].count("{") > found[-1].count("}"):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


def assert_same_files(one: Path, other: Path) -> None:
    names = [sorted(str(p.relative_to(d)) for p in d.rglob("*") if p.name != ".lock") for d in (one, other)]
    assert names[0] == names[1]
    for path in (one / "checkpoints").iterdir():
        assert (other / "checkpoints" / path.name).stat().st_size <= path.stat().st_size * 1.02 + 2000, path.name
    stages = [json.loads((d / "stages.json").read_text()) for d in (one, other)]
    assert [event["step"] for event in stages[0]["events"]] == [event["step"] for event in stages[1]["events"]]


def test_output_scales_may_differ(configs: Any) -> None:
    same_as_alone(configs, each=["seed=0 network.output_scale=0.5", "seed=0 network.output_scale=2"])


def test_a_run_that_reaches_its_accuracy_leaves_and_the_others_go_on(configs: Any) -> None:
    each = ["seed=0 optimizer.lr=0.02", "seed=1 optimizer.lr=0.02 stop_at_test_accuracy=0.05", "seed=2"]
    alone = [train.run(config) for config in configs("alone", each)]
    lengths = [len(rows(result)) for result in alone]
    assert lengths[1] < lengths[0] == lengths[2] == 25
    ended: list[int] = []
    together = train.run_stack(configs("together", each), lambda place, outcome: ended.append(place))
    assert ended == [1, 0, 2]
    for one, other in zip(alone, together, strict=True):
        assert_same(rows(one), rows(other))


class SecondsOfTheEnd(lightning.Callback):
    """Somebody's callback that notes how much time the end of the run has taken when a step begins."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.seen.append(clock.summary()["seconds"]["end"])


def test_steps_after_a_run_has_left_are_no_end(configs: Any) -> None:
    notes: list[SecondsOfTheEnd] = []

    def note() -> SecondsOfTheEnd:
        notes.append(SecondsOfTheEnd())
        return notes[-1]

    each = ["seed=0 optimizer.lr=0.02", "seed=1 optimizer.lr=0.02 stop_at_test_accuracy=0.05"]
    with added(note):
        train.run_stack(configs("together", each))
    left = len(notes[1].seen)
    assert left < len(notes[0].seen) - 2
    assert notes[0].seen[left] > 0
    assert set(notes[0].seen[left:]) == {notes[0].seen[left]}


def test_a_run_that_diverges_leaves_with_its_reason_and_the_others_go_on(configs: Any) -> None:
    each = ["seed=0", "seed=1 optimizer.lr=1e200", "seed=2"]
    with pytest.raises(DivergenceError) as error:
        train.run(configs("alone", each)[1])
    together = train.run_stack(configs("together", each))
    assert isinstance(together[1], DivergenceError)
    assert str(together[1]).partition(" Lower")[0] == str(error.value).partition(" Lower")[0]
    assert isinstance(together[0], RunResult)
    directory = next(together[0].directory.parent.parent.rglob("*-s1"))
    assert json.loads((directory / "summary.json").read_text())["status"] == "diverged"
    for place in (0, 2):
        assert_same(rows(train.run(configs("alone", each)[place])), rows(together[place]))


class Stop(lightning.Callback):
    """Sends SIGTERM to this process at row 13."""

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        if state.step == 13 and module.config["seed"] == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stack_that_was_stopped_continues_alone_and_in_a_stack(configs: Any) -> None:
    whole = train.run_stack(configs("whole", EACH))
    with added(Stop), pytest.raises(Interrupted):
        train.run_stack(configs("again", EACH))
    again = configs("again", EACH, "resume=auto")
    alone = train.run(again[0])
    rest = train.run_stack(again)
    assert isinstance(rest[0], RunResult)
    assert rest[0].stored
    for one, other in zip(whole, [alone, *rest[1:]], strict=True):
        assert_same(rows(one), rows(other))


def test_runs_at_different_rows_continue_in_one_call(
    configs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [train.run(config) for config in configs("whole", EACH)]
    # One run has made 8 steps, the next 16, and the last none.
    for place, steps in ((0, 8), (1, 16)):
        begun = train.run(configs("begun", EACH)[place])
        for path in begun.directory.glob("checkpoints/*"):
            if path.name.startswith("row-") and int(path.name[4:10]) > steps:
                path.unlink()
        (begun.directory / "summary.json").unlink()
    capsys.readouterr()
    together = train.run_stack(configs("begun", EACH, "resume=auto"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines
    assert all(re.fullmatch(r"step \d+/\d+  1 run  test accuracy \d\.\d{3}", line) for line in lines)
    for one, other in zip(whole, together, strict=True):
        assert_same(without_eigengap(one), without_eigengap(other))


class OwnWeights(Diagnostic):
    """Written for one run: the norm of what the state says, of what the module says, and a quantity that is derived."""

    def measure(self, module: Any, state: Any) -> dict[str, Any]:
        assert state.outputs.ndim == 2
        assert state.features.shape == (len(state.targets), 16)
        assert module.network is state.network
        return {
            "own/outputs": state.outputs.norm(),
            "own/features": state.features.norm() + state.class_sums.norm() + state.residual_features.norm(),
            "own/weights": module.network.W.norm() + module.network.V.norm(),
            "own/accuracy": state.columns["test/accuracy"],
        }

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        assert optimizer is pl_module.optimizer
        assert trainer.lightning_module is pl_module
        # A callback may change the gradients of its run.
        pl_module.network.V.grad *= 0.5


def test_a_callback_that_was_written_for_one_run_sees_its_run(configs: Any) -> None:
    with added(OwnWeights):
        (alone, _), *_ = same_as_alone(configs)
    assert "own/features" in rows(alone)[0]


class Clumsy(lightning.Callback):
    def on_row(self, trainer: Any, module: Any, row: Any) -> None:
        if row["step"] == 5 and module.config["seed"] == 1:
            raise ZeroDivisionError("a callback of one run")


def test_a_plug_in_that_breaks_ends_its_run_alone(configs: Any) -> None:
    with added(Clumsy):
        results = train.run_stack(configs("together", EACH))
    assert isinstance(results[1], ZeroDivisionError)
    assert [len(rows(results[place])) for place in (0, 2)] == [25, 25]


class Descent(torch.optim.Optimizer):
    """Somebody's optimizer, which knows nothing of stacks."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["sum"] = state.get("sum", torch.zeros_like(parameter)) + parameter.grad
                parameter.sub_(state["sum"], alpha=group["lr"] / 10)


class Halved(ClassCentredMSE):
    """Somebody's loss, which is not written for a leading axis: it refuses one."""

    def differences(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert outputs.ndim == 2
        return super().differences(outputs, labels) / 2


def test_an_optimizer_and_a_loss_that_were_written_for_one_run_work(configs: Any) -> None:
    shared = ("optimizer.hidden.name=tests.sweeps.test_stack:Descent", "loss=tests.sweeps.test_stack:Halved")
    same_as_alone(configs, *shared)


class Draws(Diagnostic):
    """Somebody's callback that draws from every global source of random numbers."""

    def measure(self, module: Any, state: Any) -> dict[str, Any]:
        return {"own/draws": random.random() + float(np.random.rand()) + float(torch.rand(()))}  # noqa: NPY002

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.rand(3)


def test_random_numbers_of_a_plug_in_are_those_of_the_run_alone(configs: Any) -> None:
    with added(Draws):
        pairs = same_as_alone(configs)
    assert len({row["own/draws"] for alone, _ in pairs for row in rows(alone)}) == 75


def test_in_float32_a_stack_is_as_near_to_a_run_as_two_ranks_to_one(configs: Any) -> None:
    same_as_alone(configs, "trainer.precision=32-true", read=without_eigengap, tolerance=2e-4)


def test_finished_runs_of_a_stack_are_not_repeated(configs: Any) -> None:
    first = train.run_stack(configs("together", EACH))
    assert not any(result.stored for result in first if isinstance(result, RunResult))
    again = train.run_stack(configs("together", [*EACH, "seed=3"]))
    assert [result.stored for result in again if isinstance(result, RunResult)] == [True, True, True, False]
