"""Checkpoints: which are kept, that they are whole, and that a run continued from one is the run that went on."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from callbacks.checkpoint import Checkpoint
from li2_lightning.errors import InputError, Interrupted


def kept(run: Any) -> list[int]:
    return sorted(int(path.stem.removeprefix("row-")) for path in (run.directory / "checkpoints").glob("row-*.ckpt"))


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        ([], [10]),
        (["callbacks.checkpoint={every_n_steps: 3, keep: 9}"], [3, 6, 9, 10]),
        # That of the last row leads nowhere, so it does not take the place of another.
        (["callbacks.checkpoint={every_n_steps: 3, keep: 1}"], [9, 10]),
        (["callbacks.checkpoint={every_n_steps: 3}"], [6, 9, 10]),
        (["callbacks.checkpoint={every_n_steps: 5, keep: 9}"], [5, 10]),
        # Rows 0, 4, 8, 10: the first at or after each multiple.
        (["callbacks.checkpoint={every_n_steps: 3, keep: 9}", "data.evaluate_every_n_steps=4"], [4, 8, 10]),
        (["callbacks.checkpoint={every_n_steps: 1, keep: all}"], [*range(1, 11)]),
        (["callbacks.checkpoint={every_n_steps: log3, keep: all}"], [1, 3, 5, 10]),
        (["callbacks.checkpoint={every_n_steps: log, keep: 2}"], [7, 8, 10]),
    ],
    ids=lambda value: ",".join(map(str, value)),
)
def test_the_newest_are_kept_and_last_is_another_name_of_the_newest(
    tiny_run: Any, overrides: list[str], rows: list[int]
) -> None:
    run = tiny_run(*overrides)
    assert kept(run) == rows
    folder = run.directory / "checkpoints"
    assert (folder / "last.ckpt").samefile(folder / f"row-{rows[-1]:06d}.ckpt")
    names = {path.name for path in folder.iterdir()}
    assert names == {"last.ckpt", "best.ckpt", *(f"row-{t:06d}.ckpt" for t in rows)}


def test_a_checkpoint_of_row_t_holds_the_weights_of_row_t_and_plain_containers_only(tiny_run: Any) -> None:
    run = tiny_run("callbacks.checkpoint={every_n_steps: 2, keep: 9}", "optimizer.lr=0.01")
    assert len(kept(run)) == 5
    for row in kept(run):
        checkpoint = torch.load(run.directory / "checkpoints" / f"row-{row:06d}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == checkpoint["li2_lightning"]["row"] == row
        for name, value in run.seen[row].weights.items():
            assert torch.equal(checkpoint["state_dict"][f"network.{name}"], value)
        assert checkpoint["li2_lightning"]["config"]["task"]["order"] == 7


STAGES = "callbacks.stages={rows: 2, train_accuracy: 0, independence: -1, independence_fall: 9, feature_growth: 1}"


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("every_n_steps", [4, 100])
def test_best_is_the_earliest_row_of_highest_test_accuracy(tiny_run: Any, every_n_steps: int) -> None:
    """The accuracy rises and falls, and reaches its highest value more than once."""
    run = tiny_run(f"callbacks.checkpoint.every_n_steps={every_n_steps}", "optimizer.lr=0.05", "max_steps=30", "seed=1")
    accuracies = run.column("test/accuracy")
    best = accuracies.index(max(accuracies))
    assert 0 < best < 30
    assert accuracies.count(max(accuracies)) > 1
    assert max(accuracies) > accuracies[-1]
    checkpoint = load(run.directory / "checkpoints" / "best.ckpt")
    assert checkpoint["global_step"] == checkpoint["li2_lightning"]["row"] == best
    for name, value in run.seen[best].weights.items():
        assert torch.equal(checkpoint["state_dict"][f"network.{name}"], value)
    moments = checkpoint["optimizer_states"][0]["children"]["hidden"]["state"][0]
    assert moments["step"] == best


def test_the_best_row_that_waits_is_not_written_to_by_later_steps(tiny_run: Any, tmp_path: Path) -> None:
    """All of it, the window of the last 20 updates included, as in a file that was written at once."""
    options = ["optimizer.lr=0.05", "max_steps=60", "seed=1"]
    waited = tiny_run(*options, "callbacks.checkpoint.every_n_steps=100")
    best = load(waited.directory / "checkpoints" / "best.ckpt")
    assert 0 < best["global_step"] < 60 - 20
    every = "callbacks.checkpoint={every_n_steps: 1, keep: 100}"
    at_once = tiny_run(*options, every, f"output_dir={tmp_path / 'at once'}")
    row = load(at_once.directory / "checkpoints" / f"row-{best['global_step']:06d}.ckpt")
    assert len(best["callbacks"]["Updates"]["window"]) == min(best["global_step"], 20)
    for one, other in zip(best["callbacks"]["Updates"]["window"], row["callbacks"]["Updates"]["window"], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(best["callbacks"]["Updates"]["gram"], row["callbacks"]["Updates"]["gram"])
    for name, value in best["state_dict"].items():
        assert torch.equal(row["state_dict"][name], value)
    for role, child in best["optimizer_states"][0]["children"].items():
        there = row["optimizer_states"][0]["children"][role]["state"][0]
        for name, value in child["state"][0].items():
            assert torch.equal(there[name], value)


def test_a_checkpoint_of_each_transition_is_of_the_row_that_declares_it(tiny_run: Any) -> None:
    run = tiny_run(STAGES, "max_steps=20")
    events = json.loads((run.directory / "stages.json").read_text())["events"]
    assert events
    for event in events:
        checkpoint = load(run.directory / "checkpoints" / f"stage-{event['to']}.ckpt")
        assert checkpoint["li2_lightning"]["row"] == event["step"]
        for name, value in run.seen[event["step"]].weights.items():
            assert torch.equal(checkpoint["state_dict"][f"network.{name}"], value)


def test_best_and_transitions_can_be_left_out(tiny_run: Any) -> None:
    run = tiny_run(STAGES, "max_steps=20", "callbacks.checkpoint={best: false, transitions: false}")
    assert json.loads((run.directory / "stages.json").read_text())["events"]
    assert {path.name for path in (run.directory / "checkpoints").iterdir()} == {"last.ckpt", "row-000020.ckpt"}


@pytest.mark.parametrize("name", ["best.ckpt", "stage-2.ckpt"])
def test_a_run_continues_from_any_of_them(tiny_run: Any, tmp_path: Path, name: str) -> None:
    options = (STAGES, "max_steps=20", "optimizer.lr=0.05", "seed=1")
    whole = tiny_run(*options)
    checkpoint = whole.directory / "checkpoints" / name
    row = load(checkpoint)["li2_lightning"]["row"]
    again = tiny_run(*options, f"resume={checkpoint}", f"output_dir={tmp_path / 'again'}")
    assert 0 < row < 20
    assert again.rows == whole.rows


class Dice(lightning.Callback):
    """Draws from every source, in the forward pass of each step and in each row."""

    def __init__(self) -> None:
        self.forward: dict[int, list[float]] = {}

    @staticmethod
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]  # noqa: NPY002

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.forward[trainer.global_step] = self.draw()

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        for source, value in zip(("python", "numpy", "normal", "torch"), self.draw(), strict=True):
            state.log(f"dice/{source}", value)


@pytest.mark.parametrize("evaluate", [1, 3])
def test_every_source_of_random_numbers_goes_on(
    tiny_run: Any, make_record: Callable[[], Any], tmp_path: Path, evaluate: int
) -> None:
    """A draw in the forward pass is repeated with it; one in a row that was written before is not."""
    options = ["max_steps=12", f"data.evaluate_every_n_steps={evaluate}"]
    parts = Dice(), Dice(), Dice()
    with pytest.raises(Interrupted):
        tiny_run(*options, into=make_record(), callbacks=[parts[0], InterruptAt(6)])
    resumed = tiny_run(*options, "resume=auto", callbacks=[parts[1]])
    whole = tiny_run(*options, f"output_dir={tmp_path / 'whole'}", callbacks=[parts[2]])
    assert resumed.rows == whole.rows
    assert len(set(whole.column("dice/python"))) == len(whole.rows)
    assert parts[0].forward | parts[1].forward == parts[2].forward
    repeated = max(parts[0].forward)
    assert repeated == min(parts[1].forward) in (6, 7)
    assert parts[0].forward[repeated] == parts[1].forward[repeated]


def test_a_checkpoint_knows_its_place_in_metrics_csv(tiny_run: Any, make_record: Callable[[], Any]) -> None:
    record = make_record()
    options = ["max_steps=12", "data.evaluate_every_n_steps=2"]
    with pytest.raises(Interrupted):
        tiny_run(*options, into=record, callbacks=[InterruptAt(6)])
    held = load(record.directory / "checkpoints" / "last.ckpt")["li2_lightning"]
    assert (held["row"], held["rows"], held["wandb"]) == (6, 4, None)
    path = record.directory / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (lines[:-1], lines[:1], []):
        path.write_text("".join(damaged))
        with pytest.raises(InputError, match=rf"has {max(0, len(damaged) - 1)} of the 4 rows"):
            tiny_run(*options, "resume=auto")
    path.unlink()
    with pytest.raises(InputError, match=r"metrics\.csv cannot be read"):
        tiny_run(*options, "resume=auto")
    path.write_text("".join(lines))
    resumed = tiny_run(*options, "resume=auto")
    assert [row["step"] for row in resumed.rows] == [0, 2, 4, 6, 8, 10, 12]
    assert load(record.directory / "checkpoints" / "last.ckpt")["li2_lightning"]["rows"] == 7


@pytest.mark.parametrize("option", ["best", "transitions"])
def test_a_switch_that_is_no_switch_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=rf"callbacks\.checkpoint\.{option}='yes' does not fit"):
        Checkpoint(**{option: "yes"})


def test_a_disabled_checkpoint_leaves_none(tiny_run: Any) -> None:
    run = tiny_run("callbacks.checkpoint.enabled=false", "max_steps=1")
    assert not (run.directory / "checkpoints").exists()


class InterruptAt(lightning.Callback):
    """A signal comes while row ``step`` is measured."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        if state.step == self.step:
            module.stop_signal = signal.SIGTERM


@pytest.mark.parametrize(
    ("at", "overrides"),
    [
        (6, []),
        (30, []),
        (30, ["data.batch_size=6", "data.evaluate_every_n_steps=2"]),
        (30, ["optimizer.hidden={name: muon}", "scheduler={name: cosine}", "network.hidden_layers=1"]),
        (6, ["network.readout=ridge", "network.batch_norm=true", "loss=projected_mse"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_an_interrupted_run_continues_as_if_nothing_had_happened(
    tiny_run: Any, make_record: Callable[[], Any], tmp_path: Path, overrides: list[str], at: int
) -> None:
    """Every cell of every row to the last bit: optimizer, window of updates, cadences, and a streak of the stages."""
    options = [*overrides, "max_steps=40", "optimizer.lr=0.01", "callbacks.gradient.pairs_every_n_steps=7"]
    options.append("callbacks.stages={rows: 9, train_accuracy: 0, independence: -1, independence_fall: 9}")
    record = make_record()
    with pytest.raises(Interrupted, match="Stopped by SIGTERM"):
        tiny_run(*options, into=record, callbacks=[InterruptAt(at)])
    assert record.rows[-1]["step"] == at
    assert kept(record) == [at]
    resumed = tiny_run(*options, "resume=auto")
    assert resumed.directory == record.directory
    whole = tiny_run(*options, f"output_dir={tmp_path / 'whole'}")
    assert resumed.rows == whole.rows
    assert (resumed.directory / "stages.json").read_text() == (whole.directory / "stages.json").read_text()


@pytest.mark.parametrize("option", ["every_n_steps", "keep"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "2"])
def test_a_count_that_is_no_positive_integer_is_refused(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"callbacks\.checkpoint\.{option}={value!r} does not fit"):
        Checkpoint(**{option: value})
