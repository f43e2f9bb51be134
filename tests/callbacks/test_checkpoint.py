"""Checkpoints: which are kept, that they are whole, and that a run continued from one is the run that went on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
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
        (["callbacks.checkpoint={every_n_steps: 3, keep: 1}"], [10]),
        (["callbacks.checkpoint={every_n_steps: 3}"], [9, 10]),
        (["callbacks.checkpoint={every_n_steps: 5, keep: 9}"], [5, 10]),
        # Rows 0, 4, 8, 10: the first at or after each multiple.
        (["callbacks.checkpoint={every_n_steps: 3, keep: 9}", "data.evaluate_every_n_steps=4"], [4, 8, 10]),
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
    assert names == {"last.ckpt", *(f"row-{t:06d}.ckpt" for t in rows)}


def test_a_checkpoint_of_row_t_holds_the_weights_of_row_t_and_plain_containers_only(tiny_run: Any) -> None:
    run = tiny_run("callbacks.checkpoint={every_n_steps: 2, keep: 9}", "optimizer.lr=0.01")
    assert len(kept(run)) == 5
    for row in kept(run):
        checkpoint = torch.load(run.directory / "checkpoints" / f"row-{row:06d}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == checkpoint["li2_lightning"]["row"] == row
        for name, value in run.seen[row].weights.items():
            assert torch.equal(checkpoint["state_dict"][f"network.{name}"], value)
        assert checkpoint["li2_lightning"]["config"]["task"]["order"] == 7


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
