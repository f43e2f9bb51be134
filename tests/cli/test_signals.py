"""A run that is stopped, politely or not, goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

import train
from li2_lightning.errors import Interrupted
from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import CommandLine, Process, StartProcess, directory, rows_written

# About two seconds of training with every measurement; the report would only cost time.
LONG = (
    "task.order=11",
    "network.width=32",
    "max_steps=300",
    "logger.mode=disabled",
    "trainer.threads=1",
    "callbacks.report.enabled=false",
    "callbacks.pictures.enabled=false",
    "callbacks.checkpoint.every_n_steps=50",
)
MINI_BATCHES = ("data.batch_size=16", "data.evaluate_every_n_steps=5", "optimizer=muon", "scheduler=cosine")


def start_and_wait(start: StartProcess, workplace: Path, rows: int, *arguments: str) -> Process:
    process = start(*LONG, *arguments)
    process.wait_for(lambda: rows_written(workplace) > rows)
    return process


def assert_continues(command_line: CommandLine, workplace: Path, *arguments: str) -> None:
    """resume=auto finishes; every row, stage and weight is bit for bit that of a run that was never stopped."""
    stopped = directory(workplace)
    assert not (stopped / "summary.json").exists()
    resumed = command_line(*LONG, *arguments, "resume=auto")
    assert resumed.code == 0, resumed
    assert "step 0/" not in resumed.out, "it started over"
    whole = command_line(*LONG, *arguments, "output_dir=uninterrupted")
    assert whole.code == 0
    expected = workplace / "uninterrupted" / "latest"
    metrics = read_metrics(stopped / "metrics.csv")
    assert metrics["step"].is_unique
    assert metrics["step"].iloc[-1] == 300
    assert (stopped / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    assert (stopped / "stages.json").read_bytes() == (expected / "stages.json").read_bytes()
    last, reference = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (stopped, expected)
    )
    assert bits(last["state_dict"]) == bits(reference["state_dict"])
    assert bits(last["optimizer_states"]) == bits(reference["optimizer_states"])
    assert bits(last["callbacks"]) == bits(reference["callbacks"])
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (stopped, expected)]
    for key in ("status", "final", "first_step", "stages"):
        assert ends[0][key] == ends[1][key]


def bits(value: Any) -> Any:
    """Nested containers with every tensor as its bytes, so that == compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


@pytest.mark.parametrize(
    ("signum", "code", "arguments"),
    [(signal.SIGINT, 130, ()), (signal.SIGTERM, 143, MINI_BATCHES)],
    ids=["SIGINT", "SIGTERM with mini-batches"],
)
def test_a_signal_stops_the_run_and_resume_continues_it(
    signum: int,
    code: int,
    arguments: tuple[str, ...],
    start_process: StartProcess,
    command_line: CommandLine,
    workplace: Path,
) -> None:
    process = start_and_wait(start_process, workplace, 20, *arguments)
    process.send(signum)
    outcome = process.wait()
    assert outcome.code == code, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert signal.Signals(signum).name in lines[0]
    assert "resume=auto" in lines[0]

    folder = directory(workplace)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    # What had been measured is written, up to the row that the checkpoint holds.
    assert read_metrics(folder / "metrics.csv")["step"].iloc[-1] == checkpoint["li2_lightning"]["row"] < 300
    assert_continues(command_line, workplace, *arguments)


def test_a_killed_run_continues_from_its_last_checkpoint(
    start_process: StartProcess, command_line: CommandLine, workplace: Path
) -> None:
    """kill -9 leaves no chance to save anything: rows after the checkpoint are written anew, once each."""
    process = start_and_wait(start_process, workplace, 60)
    process.wait_for(lambda: (directory(workplace) / "checkpoints" / "last.ckpt").exists())
    process.send(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    assert_continues(command_line, workplace)


class Stop(lightning.Callback):
    """A plug-in that sends this process a signal, once, from one hook of one step."""

    armed = False

    def __init__(self, hook: str, signum: int, step: int) -> None:
        setattr(self, hook, partial(self._stop, signum, step))

    def _stop(self, signum: int, step: int, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if Stop.armed and trainer.global_step == step:
            Stop.armed = False
            os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "hook",
    ["on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
     "on_before_zero_grad", "on_train_batch_end", "on_step_state"],
)  # fmt: skip
def test_whenever_in_a_step_a_signal_comes_the_state_is_saved(hook: str, signum: int, workplace: Path) -> None:
    """Lightning has signal handlers of its own, which would end the run with exit code 0 and save nothing."""
    stop = {"hook": hook, "signum": int(signum), "step": 5}
    values = {
        "task": {"order": 7},
        "network": {"width": 8},
        "max_steps": 12,
        "callbacks": {
            "report": {"enabled": False},
            "pictures": {"enabled": False},
            "tests.cli.test_signals:Stop": stop,
        },
        "logger": {"mode": "disabled"},
        "trainer": {"threads": 1},
    }
    handler = signal.getsignal(signum)
    Stop.armed = True
    with pytest.raises(Interrupted) as stopped:
        train.run(values)
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) is handler, "handlers are put back"
    folder = directory(workplace)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["li2_lightning"]["row"] in (5, 6)
    assert read_metrics(folder / "metrics.csv")["step"].iloc[-1] == checkpoint["li2_lightning"]["row"]
    resumed = train.run(values | {"resume": "auto"})
    assert read_metrics(resumed.directory / "metrics.csv")["step"].tolist() == list(range(13))


@pytest.mark.slow
def test_a_run_survives_being_stopped_again_and_again(
    start_process: StartProcess, command_line: CommandLine, workplace: Path
) -> None:
    """Slow because it starts three processes: 15 s."""
    process = start_and_wait(start_process, workplace, 20)
    process.send(signal.SIGTERM)
    process.wait()
    for signum in (signal.SIGKILL, signal.SIGINT):
        before = rows_written(workplace)
        process = start_process(*LONG, "resume=auto")
        process.wait_for(lambda before=before: rows_written(workplace) > before + 20)  # type: ignore[misc]
        process.send(signum)
        assert process.wait().code in (-signum, 128 + signum)
    assert_continues(command_line, workplace)


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "begun"), [("1", ["s0"]), ("auto", ["s0", "s1"])])
def test_a_signal_ends_a_whole_sweep(
    stack: str, begun: list[str], start_process: StartProcess, workplace: Path
) -> None:
    """Slow because it starts a process: 6 s."""
    process = start_process("-m", *LONG, "seed=0,1", f"stack={stack}")
    process.wait_for(lambda: rows_written(workplace) > 20)
    process.send(signal.SIGINT)
    assert process.wait().code == 130
    runs = sorted((workplace / "outputs" / "cyclic-adam").iterdir())
    assert [run.name.rpartition("-")[2] for run in runs] == begun
    assert all((run / "checkpoints" / "last.ckpt").exists() for run in runs)
