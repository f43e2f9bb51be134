"""kill -9 of a stack at any moment: every run of it ends as the run of a stack that nobody killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

import train
from li2_lightning.config.schema import Config
from li2_lightning.runs.directory import RunResult
from tests.cli.test_kill import STEPS, VARIANTS, config
from tests.sweeps.test_stack import assert_same, read, rows

RUNS, KILLS = 8, 5


def configs(variant: str, folder: Path) -> list[Config]:
    values = config(variant, folder)
    values["trainer"] = {**values["trainer"], "precision": "64-true"}
    return [train.read_config({**values, "seed": seed}) for seed in range(RUNS)]


def in_a_child(variant: str, folder: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    for outcome in train.run_stack(configs(variant, folder)):
        if isinstance(outcome, Exception):
            raise outcome


def rows_written(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("metrics.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stack_that_is_killed_again_and_again_ends_as_one_that_is_not(variant: str, tmp_path: Path) -> None:
    chance = random.Random(variant)
    whole = train.run_stack(configs(variant, tmp_path / "whole"))
    killed = tmp_path / "killed"
    # With mini-batches of 16 out of 48 rows there is a row every third step.
    spacing = 3 if "data" in VARIANTS[variant] else 1
    processes = multiprocessing.get_context("forkserver")
    for kill in range(KILLS):
        process = processes.Process(target=in_a_child, args=(variant, killed))
        process.start()
        # Somewhere in the next part of the way, also while checkpoints are written.
        enough = RUNS * STEPS // spacing * (kill + chance.random()) / (KILLS + 1)
        while process.is_alive() and rows_written(killed) < enough:
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was killed before its end"
    ended = train.run_stack(configs(variant, killed))
    for one, other in zip(whole, ended, strict=True):
        assert isinstance(one, RunResult)
        assert isinstance(other, RunResult), other
        assert len(read(other.directory)) == STEPS // spacing + 1
        assert_same(rows(one), rows(other))
