"""metrics.csv: exact numbers, empty cells, columns that come later, and what a killed run left."""

from __future__ import annotations

import csv
import math
import random
import struct
from pathlib import Path

import pytest

from li2_lightning.runs.metrics_csv import MetricsFile, read_metrics


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def written(path: Path, *rows: dict[str, float | None], keep_through: int | None = None) -> MetricsFile:
    """The file after these rows, as a run leaves it."""
    file = MetricsFile(path, keep_through)
    for row in rows:
        file.log_metrics(row)  # type: ignore[arg-type]
    file.finalize("success")
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_a_row_is_a_line_with_an_integer_step_and_stage_and_an_empty_cell_for_none(path: Path) -> None:
    written(path, {"step": 0.0, "loss": 0.5, "stage/index": 1.0}, {"step": 1.0, "loss": None, "stage/index": 2.0})
    assert path.read_text(encoding="utf-8") == "step,loss,stage/index\n0,0.5,1\n1,,2\n"


def test_every_float_reads_back_as_the_very_same(path: Path) -> None:
    rng = random.Random(0)
    values = [struct.unpack("d", rng.randbytes(8))[0] for _ in range(500)] + [rng.random() for _ in range(500)]
    values = [v for v in values if math.isfinite(v)] + [0.1, 1 / 3, 5e-324, -0.0, 1e22]
    written(path, *({"step": float(i), "value": v} for i, v in enumerate(values)))
    assert read_metrics(path)["value"].tolist() == values
    assert read_metrics(path)["step"].tolist() == list(range(len(values)))


def test_columns_stand_in_order_of_appearance_and_a_late_one_is_empty_before(path: Path) -> None:
    written(path, {"step": 0, "a": 1.0}, {"step": 1, "b": 2.0, "a": 3.0}, {"c": 4.0, "step": 2})
    assert cells(path) == [
        ["step", "a", "b", "c"],
        ["0", "1.0", "", ""],
        ["1", "3.0", "2.0", ""],
        ["2", "", "", "4.0"],
    ]
    assert math.isnan(read_metrics(path)["c"][0])


def test_rows_reach_the_file_in_batches_and_at_the_latest_when_it_is_finalized(path: Path) -> None:
    file = MetricsFile(path)
    for step in range(file.FLUSH_EVERY + 5):
        file.log_metrics({"step": step})
    assert len(cells(path)) == 1 + file.FLUSH_EVERY
    file.finalize("success")
    assert len(cells(path)) == 1 + file.FLUSH_EVERY + 5


def test_a_row_after_finalize_is_added_to_those_before(path: Path) -> None:
    file = written(path, {"step": 0}, {"step": 1})
    file.log_metrics({"step": 2})
    file.finalize("success")
    assert cells(path) == [["step"], ["0"], ["1"], ["2"]]


def test_without_keep_through_the_file_starts_over(path: Path) -> None:
    written(path, {"step": 0, "old": 1.0})
    written(path, {"step": 0, "new": 2.0})
    assert cells(path) == [["step", "new"], ["0", "2.0"]]


@pytest.mark.parametrize("keep", [0, 2, 9])
def test_keep_through_cuts_what_a_resumed_run_writes_anew(path: Path, keep: int) -> None:
    before = [{"step": float(t), "a": float(t)} for t in range(5)]
    written(path, *before)
    written(path, {"step": 100, "a": 0.5}, keep_through=keep)
    assert cells(path) == [["step", "a"], *([str(t), f"{t}.0"] for t in range(5) if t <= keep), ["100", "0.5"]]


def test_keep_through_of_a_file_that_is_not_there_starts_one(path: Path) -> None:
    written(path, {"step": 3, "a": 1.0}, keep_through=7)
    assert cells(path) == [["step", "a"], ["3", "1.0"]]


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_last_line_that_was_cut_off_does_not_count(path: Path, cut: int) -> None:
    """Wherever the kill fell in "2,0.25,44\\n", also within the last number or just before the end of the line."""
    written(path, {"step": 0, "a": 0.5, "stage/index": 1.0}, {"step": 2, "a": 0.25, "stage/index": 44.0})
    path.write_text(path.read_text(encoding="utf-8")[:-cut], encoding="utf-8")
    written(path, {"step": 2, "a": 0.125, "stage/index": 2.0}, keep_through=2)
    assert cells(path) == [["step", "a", "stage/index"], ["0", "0.5", "1"], ["2", "0.125", "2"]]


def test_a_resumed_run_may_bring_new_columns(path: Path) -> None:
    written(path, {"step": 0, "a": 0.5}, {"step": 1, "a": 0.5})
    written(path, {"step": 1, "a": 1.5, "b": 2.5}, keep_through=0)
    assert cells(path) == [["step", "a", "b"], ["0", "0.5", ""], ["1", "1.5", "2.5"]]


def test_it_leaves_no_other_file(path: Path) -> None:
    written(path, {"step": 0}, {"step": 1, "late": 1.0})
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.csv"]
