"""kill -9 at any moment, also in the middle of writing a checkpoint: what comes out is what would have come out."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests.cli.test_signals import bits

STEPS = 240
VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "muon": {"optimizer": {"lr": 0.02, "hidden": {"name": "muon"}, "output": {"name": "adam", "lr": 1e-3}}},
    "adam-mini-batches": {
        "data": {"batch_size": 16, "evaluate_every_n_steps": 3},
        "scheduler": {"name": "cosine"},
        "network": {"width": 64, "hidden_layers": 1},
    },
    "muon-mini-batches": {
        "data": {"batch_size": 16},
        "optimizer": {"lr": 0.02, "hidden": {"name": "muon"}, "output": {"name": "adam", "lr": 1e-3}},
    },
}


def config(variant: str, output_dir: Path) -> dict[str, Any]:
    """A small run with every measurement and frequent checkpoints, which declares stages on its way."""
    base: dict[str, Any] = {
        "task": {"order": 11},
        "network": {"width": 64},
        "max_steps": STEPS,
        "output_dir": str(output_dir),
        "resume": "auto",
        "callbacks": {
            "report": {"enabled": False},
            "pictures": {"enabled": False},
            "checkpoint": {"every_n_steps": 10},
            "interaction": {"every_n_steps": 40, "pairs": 20},
            "stages": {"train_accuracy": 0.5, "rows": 3},
        },
        "logger": {"mode": "disabled"},
        "trainer": {"accelerator": "cpu", "threads": 1},
    }
    return base | VARIANTS[variant]


def quietly(values: dict[str, Any]) -> None:
    """In the child: a run whose lines nobody reads."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    train.run(values)


class Killer:
    """Runs a config in processes of its own, forked from one that has imported everything, and kills them.

    Attributes:
        kills: how often a process was ended by SIGKILL.
        while_writing: how many of them left a half-written checkpoint behind.
    """

    def __init__(self, values: dict[str, Any], seed: int) -> None:
        self.values, self.random = values, random.Random(seed)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["train", "tests.cli.test_kill"])
        self.output = Path(values["output_dir"])
        self.kills = self.while_writing = 0

    def cycle(self) -> None:
        """Start, or go on, and kill: at a moment of time, after some rows, or while a checkpoint is being written."""
        moment = self.random.choice(("time", "rows", "writing"))
        # A cycle that always came within the first checkpoint interval would test the start alone.
        before = self.rows()
        target, delay = before + self.random.randint(1, 30), self.random.uniform(0, 1.5)
        process = self.context.Process(target=quietly, args=(self.values,))
        process.start()
        began = time.monotonic()
        try:
            while process.is_alive():
                waited = time.monotonic() - began
                reached = {
                    "time": waited > delay,
                    "rows": self.rows() >= target,
                    "writing": waited > delay and bool(self.parts()),
                }
                # The end of the run shall not be reached too soon: then nothing would be left to kill.
                if reached[moment] or self.rows() > min(before + 50, STEPS - 30):
                    break
                if waited > 120:
                    pytest.fail(f"no moment to kill came within two minutes ({moment}, {self.rows()} rows)")
        finally:
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:
            self.kills += 1
            self.while_writing += bool(self.parts())

    def finish(self) -> Path:
        """Go on to the end, and return the run directory."""
        process = self.context.Process(target=quietly, args=(self.values,))
        process.start()
        process.join(240)
        assert process.exitcode == 0
        return (self.output / "latest").resolve()

    def rows(self) -> int:
        """Lines in metrics.csv that the operating system knows of."""
        try:
            return (self.output / "latest" / "metrics.csv").read_bytes().count(b"\n")
        except OSError:
            return 0

    def parts(self) -> list[Path]:
        try:
            return list((self.output / "latest" / "checkpoints").glob(".*.part"))
        except OSError:
            return []


def assert_same(killed: Path, whole: Path) -> None:
    """Files bit for bit; of the checkpoints everything but what differs between any two runs."""
    for name in ("metrics.csv", "stages.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert {path.name for path in (killed / "checkpoints").iterdir()} == names
    assert {"last.ckpt", "best.ckpt", "stage-2.ckpt", f"row-{STEPS:06d}.window"} <= names
    for name in names:
        ours, theirs = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (killed, whole))
        assert ours.keys() == theirs.keys(), name
        for part in ours.keys() & {"state_dict", "optimizer_states", "lr_schedulers", "callbacks", "Updates"}:
            assert bits(ours[part]) == bits(theirs[part]), (name, part)
        for part in ours.keys() & {"li2_lightning"}:
            assert ours[part].get("rows") == theirs[part].get("rows"), name
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (killed, whole)]
    for key in ("status", "final", "first_step", "stages"):
        assert ends[0][key] == ends[1][key], key
    assert not list(killed.rglob(".*.part"))


def kill_and_compare(variant: str, kills: int, seed: int, folder: Path) -> Killer:
    killer = Killer(config(variant, folder / "killed"), seed)
    cycles = 0
    while killer.kills < kills:
        # Killed near its end, a run has nothing left to be killed in; the next one starts from nothing.
        if killer.rows() > STEPS - 30 or cycles >= kills * 3:
            break
        killer.cycle()
        cycles += 1
    killed = killer.finish()
    whole = Killer(config(variant, folder / "whole"), seed).finish()
    assert_same(killed, whole)
    return killer


def test_a_run_that_is_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    assert kill_and_compare("muon-mini-batches", 2, seed=1, folder=tmp_path).kills == 2


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow because it goes on until each of the four kinds of run was killed 13 times, which is 52 in all."""
    kills, writing, runs = (dict.fromkeys(VARIANTS, 0) for _ in range(3))
    # How many kills a run has room for is chance; the next run is one of the kind that was killed least.
    while min(kills.values()) < 13 and sum(runs.values()) < 40:
        variant = min(kills, key=lambda name: kills[name])
        seed = 100 + sum(runs.values())
        killer = kill_and_compare(variant, 13 - kills[variant], seed, tmp_path / str(seed))
        kills[variant] += killer.kills
        writing[variant] += killer.while_writing
        runs[variant] += 1
        with capsys.disabled():
            told = [f"{name} {kills[name]} ({writing[name]}) in {runs[name]}" for name in VARIANTS]
            print("\nkills (while a checkpoint was being written) in runs:", "; ".join(told), end="", flush=True)
    assert min(kills.values()) >= 13, kills
    assert sum(writing.values()) >= 5, writing
