"""Sweeps: one command, many directories, and one that fails stops none of the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, CommandLine, StartProcess

FAST = (*TINY, "callbacks=minimal", "name=sweep")


def finished(workplace: Path) -> list[str]:
    return sorted(path.parent.name for path in workplace.glob("outputs/sweep/*/summary.json"))


def only_outputs(workplace: Path) -> bool:
    """Nothing of Hydra's own: no multirun/, no outputs/DATE, no .hydra."""
    entries = [path.name for path in workplace.rglob("*")]
    tidy = not {".hydra", "multirun", "multirun.yaml", "train.log"} & set(entries)
    return tidy and [path.name for path in workplace.iterdir()] == ["outputs"] and sorted(
        path.name for path in (workplace / "outputs").iterdir()
    ) == ["latest", "sweep"]  # fmt: skip


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_directory_for_each_seed(flag: str, command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(flag, *FAST, "seed=0,1")
    assert outcome.code == 0, outcome
    names = finished(workplace)
    assert [name.rpartition("-")[2] for name in names] == ["s0", "s1"]
    assert len({name.partition("-")[0] for name in names}) == 1
    assert only_outputs(workplace)
    assert outcome.out.count("Files: ") == 2


@pytest.mark.parametrize("position", [1, len(FAST), len(FAST) + 1])
def test_the_flag_may_stand_anywhere(position: int, command_line: CommandLine, workplace: Path) -> None:
    arguments = [*FAST, "seed=0,1"]
    outcome = command_line(*arguments[:position], "-m", *arguments[position:])
    assert outcome.code == 0, outcome
    assert len(finished(workplace)) == 2
    assert only_outputs(workplace)


def test_one_that_fails_stops_none_of_the_others(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("-m", *FAST, "task.order=7,0,8")
    assert outcome.code == 1
    assert len(finished(workplace)) == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert "task.order=0" in lines[0], "which run"
    assert "task.order is 0; allowed" in lines[0], "why"
    assert only_outputs(workplace)


def test_one_that_diverges_stops_none_of_the_others(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("-m", *FAST, "optimizer.lr=1e30,1e-3")
    assert outcome.code == 1
    assert len(finished(workplace)) == 2, "a diverged run keeps its summary, too"
    assert re.search(r"optimizer\.lr=1e\+?30", outcome.err)
    assert "diverged" in outcome.err


def test_a_plug_in_that_breaks_stops_none_of_the_others(command_line: CommandLine, workplace: Path) -> None:
    """An internal error of one run is shown as one, with its type."""
    outcome = command_line("-m", *FAST, "optimizer.hidden.name=adam,tests.cli.test_sweep:Broken")
    assert outcome.code == 1
    assert len(finished(workplace)) == 1
    assert "ZeroDivisionError" in outcome.err


def test_finished_runs_are_not_repeated(command_line: CommandLine, workplace: Path) -> None:
    assert command_line("-m", *FAST, "seed=0,1").code == 0
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("summary.json")}
    outcome = command_line("-m", *FAST, "seed=0,1,2")
    assert outcome.code == 0
    assert len(finished(workplace)) == 3
    assert outcome.out.count("was finished before") == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_an_experiment_brings_its_seeds(command_line: CommandLine, workplace: Path) -> None:
    """With -m the grid of the experiment file runs; the command line has the last word."""
    outcome = command_line("-m", "experiment=fig03_no_weight_decay", *FAST, "data.train_size=20", "seed=3,4")
    assert outcome.code == 0, outcome
    assert [name.rpartition("-")[2] for name in finished(workplace)] == ["s3", "s4"]


def test_a_key_that_does_not_exist_runs_nothing(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("-m", *FAST, "seed=0,1", "task.oder=3")
    assert outcome.code == 2
    assert list(workplace.iterdir()) == []


@pytest.mark.slow
def test_as_a_process(start_process: StartProcess, workplace: Path) -> None:
    """Slow because it starts a process: 6 s."""
    outcome = start_process("-m", *FAST, "task.order=7,0").wait()
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert only_outputs(workplace)


class Broken:
    """A plug-in with a mistake in it."""

    def __init__(self, params: object, lr: float = 1.0) -> None:
        raise ZeroDivisionError
