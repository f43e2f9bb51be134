"""Checkpoints: which are kept, that they are whole, and that a run continued from one is the run that went on."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import lightning
import numpy as np
import pytest
import torch

from callbacks.checkpoint import Checkpoint
from li2_lightning.errors import InputError, Interrupted
from li2_lightning.measurement.rows import Row
from li2_lightning.module import Li2Module


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
    assert names == {"last.ckpt", "best.ckpt", *(f"row-{t:06d}.ckpt" for t in rows), f"row-{rows[-1]:06d}.window"}


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


@pytest.mark.parametrize(("every_n_steps", "resumable"), [(4, "true"), (100, "false")])
def test_best_is_the_earliest_row_of_highest_test_accuracy(tiny_run: Any, every_n_steps: int, resumable: str) -> None:
    """The accuracy rises and falls, and reaches its highest value more than once."""
    options = f"callbacks.checkpoint={{every_n_steps: {every_n_steps}, resumable: {resumable}}}"
    run = tiny_run(options, "optimizer.lr=0.05", "max_steps=30", "seed=1")
    accuracies = run.column("test/accuracy")
    best = accuracies.index(max(accuracies))
    assert 0 < best < 30
    assert accuracies.count(max(accuracies)) > 1
    assert max(accuracies) > accuracies[-1]
    checkpoint = load(run.directory / "checkpoints" / "best.ckpt")
    assert checkpoint["global_step"] == checkpoint["li2_lightning"]["row"] == best
    for name, value in run.seen[best].weights.items():
        assert torch.equal(checkpoint["state_dict"][f"network.{name}"], value)
    assert checkpoint["li2_lightning"]["config"]["seed"] == 1
    assert ("optimizer_states" in checkpoint) == (resumable == "true")
    if resumable == "true":
        assert checkpoint["optimizer_states"][0]["children"]["hidden"]["state"][0]["step"] == best


def test_the_best_row_that_waits_is_not_written_to_by_later_steps(tiny_run: Any, tmp_path: Path) -> None:
    """All of it, as in a file that was written at once."""
    options = ["optimizer.lr=0.05", "max_steps=60", "seed=1"]
    waited = tiny_run(*options, "callbacks.checkpoint={every_n_steps: 100, resumable: true}")
    best = load(waited.directory / "checkpoints" / "best.ckpt")
    assert 0 < best["global_step"] < 60 - 20
    every = "callbacks.checkpoint={every_n_steps: 1, keep: 100}"
    at_once = tiny_run(*options, every, f"output_dir={tmp_path / 'at once'}")
    row = load(at_once.directory / "checkpoints" / f"row-{best['global_step']:06d}.ckpt")
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
    names = {path.name for path in (run.directory / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "row-000020.ckpt", "row-000020.window"}


@pytest.mark.parametrize("keeps", [True, False])
def test_where_rows_wait_as_on_an_accelerator_those_that_a_checkpoint_needs_do_not(
    keeps: bool, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = f"{{every_n_steps: 6, keep: all, best: {keeps}, transitions: {keeps}}}"
    run = partial(tiny_run, STAGES, "max_steps=20", f"callbacks.checkpoint={options}")
    expected = run()
    handed: list[int] = []

    def receive(module: Li2Module, rows: list[Row]) -> None:
        handed.append(len(rows))
        receive_rows(module, rows)

    receive_rows = Li2Module.receive
    monkeypatch.setattr(Li2Module, "receive", receive)
    monkeypatch.setattr(Li2Module, "rows_are_due", property(lambda module: module.position.is_needed))
    found = run(f"output_dir={tmp_path / 'waiting'}")
    assert [rows for rows in handed if rows] == ([1] * 21 if keeps else [7, 6, 6, 2])
    for path in sorted((expected.directory / "checkpoints").iterdir()):
        weights = [
            torch.load(file, weights_only=True).get("state_dict")
            for file in (path, found.directory / "checkpoints" / path.name)
        ]
        torch.testing.assert_close(*weights, rtol=0, atol=0)


# -- the window of updates --------------------------------------------------------------------------------------------


def without(rows: list[dict[str, float | None]], column: str) -> list[dict[str, float | None]]:
    return [{name: value for name, value in row.items() if name != column} for row in rows]


@pytest.mark.parametrize(
    "name",
    [
        "best.ckpt",
        pytest.param("stage-2.ckpt", marks=pytest.mark.slow),
        pytest.param("row-000025.ckpt", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_continues_from_an_older_checkpoint_lacks_the_eigengap_for_20_rows_and_nothing_else(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    every = "callbacks.checkpoint={every_n_steps: 25, resumable: true}"
    options = (STAGES.replace("rows: 2", "rows: 24"), "max_steps=60", "optimizer.lr=0.05", "seed=1", every)
    whole = tiny_run(*options)
    checkpoint = whole.directory / "checkpoints" / name
    row = load(checkpoint)["li2_lightning"]["row"]
    capsys.readouterr()
    again = tiny_run(*options, f"resume={checkpoint}", f"output_dir={tmp_path / 'again'}")
    assert "update/eigengap is empty for 20 rows" in capsys.readouterr().err
    assert 0 < row < 40
    assert without(again.rows, "update/eigengap") == without(whole.rows, "update/eigengap")
    before, after = again.column("update/eigengap"), whole.column("update/eigengap")
    assert before[: row + 1] == after[: row + 1]
    assert before[row + 1 : row + 20] == [None] * 19
    assert before[row + 20 :] == pytest.approx(after[row + 20 :], rel=1e-6)


@pytest.mark.slow
def test_the_row_file_that_last_names_continues_with_every_column(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tiny_run("max_steps=25", "optimizer.lr=0.05")
    capsys.readouterr()
    last = short.directory / "checkpoints" / "last.ckpt"
    longer = tiny_run("max_steps=30", "optimizer.lr=0.05", f"resume={last}")
    assert capsys.readouterr().err == ""
    whole = tiny_run("max_steps=30", "optimizer.lr=0.05", f"output_dir={tmp_path / 'whole'}")
    # Row 25 was a last row, in which every column is due.
    assert longer.rows[26:] == whole.rows[26:]


@pytest.mark.slow
def test_the_window_of_another_run_is_not_taken(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    windows = [tiny_run("max_steps=25", f"seed={seed}").directory / "checkpoints" for seed in (0, 1)]
    (windows[1] / "row-000025.window").replace(windows[0] / "row-000025.window")
    capsys.readouterr()
    run = tiny_run("max_steps=26", f"resume={windows[0] / 'last.ckpt'}")
    assert "update/eigengap is empty for 20 rows" in capsys.readouterr().err
    assert run.column("update/eigengap")[24:] == [pytest.approx(run.column("update/eigengap")[24]), ANY, None]


def test_a_damaged_window_is_named_and_may_be_removed(tiny_run: Any) -> None:
    folder = tiny_run("max_steps=2").directory / "checkpoints"
    whole = (folder / "row-000002.window").read_bytes()
    middle = len(whole) // 2
    changed = bytes(255 - byte for byte in whole[middle : middle + 20])
    for damaged in (whole[:-100], whole[:middle] + changed + whole[middle + 20 :], b""):
        (folder / "row-000002.window").write_bytes(damaged)
        with pytest.raises(InputError, match=r"row-000002\.window is damaged; remove it, and the run goes on"):
            tiny_run("max_steps=3", f"resume={folder / 'last.ckpt'}")
    (folder / "row-000002.window").unlink()
    assert len(tiny_run("max_steps=3", f"resume={folder / 'last.ckpt'}").rows) == 4


class Dies(BaseException):
    """The process is killed."""


@pytest.mark.parametrize(
    ("change", "target"),
    [
        pytest.param("replace", "row-000024.window", marks=pytest.mark.slow),
        ("replace", "row-000024.ckpt"),
        pytest.param("replace", "last.ckpt", marks=pytest.mark.slow),
        pytest.param("unlink", "row-000022.window", marks=pytest.mark.slow),
        pytest.param("replace", "row-000026.ckpt", marks=pytest.mark.slow),
        ("replace", "summary.json"),
        pytest.param("unlink", "row-000024.window", marks=pytest.mark.slow),
    ],
)
def test_killed_before_any_change_of_its_files_a_run_continues_with_every_column(
    tiny_run: Any, make_record: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str, target: str
) -> None:
    options = ["max_steps=26", "optimizer.lr=0.05", "callbacks.checkpoint.every_n_steps=2"]
    real = {"replace": os.replace, "unlink": Path.unlink}
    seen: list[str] = []

    def dying(*arguments: Any, **options: Any) -> Any:
        name = Path(arguments[-1 if change == "replace" else 0]).name
        seen.append(name)
        # last.ckpt is replaced with every row; here at row 24.
        if name == target and (name != "last.ckpt" or "row-000024.ckpt" in seen):
            raise Dies
        return real[change](*arguments, **options)

    record = make_record()
    with monkeypatch.context() as patch:
        patch.setattr(os if change == "replace" else Path, change, dying)
        with pytest.raises(Dies):
            tiny_run(*options, into=record)
    resumed = tiny_run(*options, "resume=auto")
    assert resumed.rows == tiny_run(*options, f"output_dir={tmp_path / 'whole'}").rows


# -- weights alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best.ckpt", pytest.param("stage-2.ckpt", marks=pytest.mark.slow)])
def test_without_the_optimizer_state_a_run_starts_at_the_weights_but_does_not_continue(
    tiny_run: Any, tmp_path: Path, name: str
) -> None:
    options = (STAGES, "max_steps=20", "optimizer.lr=0.05", "seed=1")
    whole = tiny_run(*options)
    checkpoint = whole.directory / "checkpoints" / name
    elsewhere = f"output_dir={tmp_path / 'again'}"
    with pytest.raises(InputError, match=r"holds the weights of row \d+ without the state of the optimizer; continue"):
        tiny_run(*options, f"resume={checkpoint}", elsewhere)
    assert not (tmp_path / "again").exists()
    started = tiny_run(*options, f"network.initial_weights={checkpoint}", elsewhere)
    row = load(checkpoint)["li2_lightning"]["row"]
    assert row > 0
    assert started.rows[0]["test/loss"] == pytest.approx(whole.rows[row]["test/loss"], rel=1e-12)


def test_weights_alone_take_a_third_of_the_state_and_the_state_no_more_than_weights_and_moments(tiny_run: Any) -> None:
    width = 1024
    run = tiny_run(f"network.width={width}", "max_steps=22")
    weights = 8 * 3 * 7 * width
    sizes = {path.name: path.stat().st_size / weights for path in (run.directory / "checkpoints").iterdir()}
    assert 1 < sizes["best.ckpt"] < 1.2
    assert 3 < sizes["row-000022.ckpt"] < 3.3
    # 19 updates of W, which is two thirds of the weights.
    assert 12.6 < sizes["row-000022.window"] < 12.8


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


@pytest.mark.parametrize("option", ["best", "transitions", "resumable"])
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
