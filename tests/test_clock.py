"""The seconds of a run by part: they add up, and each part has its own time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import pytest

import li2_lightning.clock as clock_module
import train
from li2_lightning.clock import PARTS, Clock, clock
from li2_lightning.runs.terminal import split_of_time


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a clock reads: the only entry of the list."""
    now = [100.0]
    monkeypatch.setattr(clock_module, "perf_counter", lambda: now[0])
    return now


def test_a_block_stops_the_part_around_it(time: list[float]) -> None:
    watch = Clock()
    time[0] += 1
    watch.phase("steps")
    time[0] += 2
    with watch.part("rows"):
        time[0] += 4
        with watch.part("pictures"), watch.part("rows"):
            time[0] += 8
        time[0] += 16
    watch.phase("end")
    time[0] += 32
    summary = watch.summary()
    expected = dict.fromkeys(PARTS, 0.0) | {"start": 1, "steps": 2, "rows": 28, "end": 32}
    assert summary == {"wall_time_s": 63, "seconds": expected}


def test_a_part_ends_with_an_error_and_a_new_part_has_its_own_name(time: list[float]) -> None:
    watch = Clock()

    @watch.part("mine")
    def fail() -> None:
        time[0] += 3
        raise ValueError("here")

    for _ in range(2):
        with pytest.raises(ValueError, match="here"):
            fail()
    time[0] += 1
    assert watch.summary()["seconds"] == dict.fromkeys(PARTS, 0.0) | {"start": 1, "mine": 6}


def test_only_the_first_run_of_a_command_counts_the_time_before_it(time: list[float]) -> None:
    watch = Clock()
    time[0] += 5
    watch.begin()
    assert watch.summary()["wall_time_s"] == 0
    watch.starts_command()
    time[0] += 1
    for before in (6, 0):
        watch.begin()
        assert watch.summary()["seconds"]["start"] == before
        time[0] += 3


class Slow(lightning.Callback):
    """Lets a second pass in each of its hooks, as a part of its own."""

    part = "slow"

    def __init__(self, time: list[float]) -> None:
        self.time = time

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        self.time[0] += 1

    def on_last_row(self, trainer: Any, module: Any) -> None:
        with clock.part("report"):
            self.time[0] += 7


def test_the_parts_of_a_run_add_up_in_its_summary(tiny_run: Any, time: list[float]) -> None:
    clock.begin()
    run = tiny_run("max_steps=3", callbacks=[Slow(time)])
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["seconds"] == dict.fromkeys(PARTS, 0.0) | {"slow": 4, "report": 7}
    assert summary["wall_time_s"] == 11


def test_every_part_of_a_real_run_takes_time_and_ends_after_the_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B ends after summary.json is first written; its last second is in the file nevertheless."""
    at_the_end: list[dict[str, Any]] = []
    real = train.RunDirectory.close

    def close(directory: Any) -> Any:
        at_the_end.append(directory.summary())
        return real(directory)

    monkeypatch.setattr(train.RunDirectory, "close", close)
    values = {
        "task": {"order": 7},
        "network": {"width": 8},
        "max_steps": 3,
        "output_dir": str(tmp_path),
        "logger": {"mode": "offline"},
        "trainer": {"accelerator": "cpu", "threads": 1},
    }
    result = train.run(values)
    assert json.loads((result.directory / "summary.json").read_text()) == result.summary
    assert all(result.summary["seconds"][part] > 0 for part in PARTS)
    assert result.summary["wall_time_s"] == pytest.approx(sum(result.summary["seconds"].values()), abs=1e-3)
    before = at_the_end[0]["seconds"]
    assert before["logging"] < result.summary["seconds"]["logging"]
    same = [part for part in PARTS if before[part] == result.summary["seconds"][part]]
    assert set(same) >= {"start", "steps", "rows", "report"}


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ({"start": 1.0, "steps": 22.04, "end": 0.01}, "Seconds: steps 22.0, start 1.0"),
        ({"start": 0.0}, "Seconds: "),
        (
            dict.fromkeys(PARTS, 123456.7),
            "Seconds: start 123456.7, steps 123456.7, rows 123456.7, rest 740740.2",
        ),
        (
            {part: 9.5 - index for index, part in enumerate(PARTS)},
            "Seconds: start 9.5, steps 8.5, rows 7.5, interaction 6.5, rest 17.5",
        ),
    ],
)
def test_the_closing_line_fits_80_columns_and_adds_up(seconds: dict[str, float], line: str) -> None:
    assert split_of_time(seconds) == line
    assert len(line) <= 80
