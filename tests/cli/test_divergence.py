"""Training that blows up: one sentence, exit code 3, and what was good is kept."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import TINY, CommandLine, StartProcess, directory

QUIET = (*TINY, "callbacks.report.enabled=false", "callbacks.pictures.enabled=false", "max_steps=40")
# Gradient descent at a rate that grows the loss for some steps before it overflows.
GROWING = (*QUIET, "optimizer=sgd", "optimizer.lr=20", "callbacks.checkpoint.every_n_steps=1")


@pytest.mark.parametrize("rate", ["1e9", "1e10", "1e30"])
@pytest.mark.parametrize("loss", ["mse", "projected_mse"])
def test_a_huge_learning_rate_diverges(rate: str, loss: str, command_line: CommandLine, workplace: Path) -> None:
    """Whether the loss becomes infinite first, or no number at all."""
    outcome = command_line(*QUIET, f"optimizer.lr={rate}", f"loss={loss}")
    assert outcome.code == 3, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    began = r"error: Training diverged: train/loss is (nan|inf) in row (\d+); row (\d+) was finite; "
    began += r"(not finite are [VW]|the weights are finite)"
    where = re.match(began, lines[0])
    assert where is not None, lines[0]
    assert int(where.group(2)) == int(where.group(3)) + 1
    assert "optimizer.lr" in lines[0]
    summary = json.loads((directory(workplace) / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert lines[0] == f"error: {summary['reason']}"


def test_a_rate_that_the_weights_type_cannot_hold_diverges(command_line: CommandLine, workplace: Path) -> None:
    """Adam divides the rate by 1−β₁ at first, and torch refuses to convert the quotient where Python has to."""
    outcome = command_line(*QUIET, "optimizer.lr=1e38", "network.complex_weights=true")
    assert outcome.code == 3, outcome
    assert outcome.err.startswith("error: Training diverged: the update after row 0 overflows. Lower optimizer.lr")
    assert len(outcome.err.splitlines()) == 1
    assert read_metrics(directory(workplace) / "metrics.csv")["step"].tolist() == [0]


def test_between_rows_the_last_finite_one_is_named(command_line: CommandLine) -> None:
    outcome = command_line(*QUIET, "optimizer=sgd", "optimizer.lr=20", "data.evaluate_every_n_steps=7")
    assert outcome.code == 3, outcome
    assert re.search(r"is (nan|inf) in row (7|14|21); row (0|7|14) was finite; not finite are V, W\.", outcome.err), (
        outcome.err
    )


def test_what_was_good_is_kept(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(*GROWING)
    assert outcome.code == 3, outcome
    folder = directory(workplace)
    named = re.search(r"in row (\d+)", outcome.err)
    assert named is not None
    row = int(named.group(1))
    assert row > 2

    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["step"].tolist() == list(range(row + 1))
    assert all(map(math.isfinite, metrics["train/loss"].iloc[:-1]))
    assert not math.isfinite(metrics["train/loss"].iloc[-1])

    assert str(Path("outputs", *folder.parts[-2:], "checkpoints", "last.ckpt")) in outcome.err
    kept = sorted((folder / "checkpoints").glob("*.ckpt"))
    assert len(kept) == 4
    for path in kept:
        checkpoint = torch.load(path, weights_only=True)
        # The best row may well be that of the initial weights.
        assert (0 if path.name == "best.ckpt" else 1) <= checkpoint["li2_lightning"]["row"] < row
        for name, tensor in checkpoint["state_dict"].items():
            assert torch.isfinite(tensor).all(), name
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["li2_lightning"]["row"] == row - 1
    assert not list(folder.rglob(".*.part"))


def test_a_second_call_reports_what_is_stored(command_line: CommandLine, workplace: Path) -> None:
    first = command_line(*GROWING)
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    second = command_line(*GROWING)
    assert (first.code, second.code) == (3, 3)
    assert second.out == ""
    assert first.err.strip().removesuffix(".") in second.err
    assert "force=true" in second.err
    assert {path: path.stat().st_mtime_ns for path in workplace.rglob("*")} == before
    assert command_line(*GROWING, "force=true").code == 3


def test_an_undefined_value_is_no_divergence(command_line: CommandLine, workplace: Path) -> None:
    """A readout of zeros has no direction: cosines with it are empty cells, and the run goes on."""
    outcome = command_line(*QUIET, "network.readout_init_scale=0")
    assert outcome.code == 0, outcome
    metrics = read_metrics(directory(workplace) / "metrics.csv")
    assert math.isnan(metrics["gradient/readout_alignment"].iloc[0])
    assert not math.isnan(metrics["gradient/readout_alignment"].iloc[-1])


def test_the_good_checkpoint_can_be_continued_more_gently(command_line: CommandLine, workplace: Path) -> None:
    """The message says to lower the rate; from the kept weights that works."""
    command_line(*GROWING)
    last = directory(workplace) / "checkpoints" / "row-000001.ckpt"
    if not last.exists():
        last = directory(workplace) / "checkpoints" / "last.ckpt"
    gentler = command_line(*QUIET, f"network.initial_weights={last}", "optimizer.lr=1e-6", "max_steps=2")
    assert gentler.code == 0, gentler


@pytest.mark.slow
def test_as_a_process(start_process: StartProcess) -> None:
    """Slow because it starts a process: 6 s."""
    outcome = start_process(*QUIET, "optimizer.lr=1e30").wait()
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("error: Training diverged")
