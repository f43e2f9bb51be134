"""One row a run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from li2_lightning.analysis.collect import collect
from li2_lightning.runs.load import find_runs
from tests.conftest import li2_command

main = li2_command("collect")


def test_a_row_has_the_settings_and_what_came_out(small_sweep: Path) -> None:
    frame = collect([small_sweep])
    assert len(frame) == 4
    for (_, row), run in zip(frame.iterrows(), find_runs([small_sweep]), strict=True):
        assert row["directory"] == str(run.directory)
        assert row["optimizer.lr"] == run["optimizer.lr"]
        assert row["outcome/status"] == "finished"
        assert row["outcome/step"] == 12
        assert row["outcome/train_fraction"] == 19 / 49
        assert row["outcome/predicted_fraction"] == run.task.predicted_fraction
        assert run.summary is not None
        for name, value in run.summary["final"].items():
            if name != "step":
                assert row[f"outcome/final/{name}"] == value
        for split, reached in run.summary["first_step"].items():
            for level, step in reached.items():
                found = row[f"outcome/first_step/{split}/{level}"]
                assert step is None if pd.isna(found) else found == step
        assert row["outcome/wall_time_s"] == run.summary["wall_time_s"]
        norms = run.metrics["gradient/norm"]
        assert row["outcome/max/gradient/norm"] == norms.max()
        assert norms[row["outcome/max_step/gradient/norm"]] == norms.max()


def test_stages_by_their_steps(own_sweep: Path) -> None:
    runs = find_runs([own_sweep])
    event = {"from": 1, "to": 2, "step": 7}
    for run, stalled, events in zip(
        runs, (True, False), ([event], [event, {**event, "to": 3, "step": 9}]), strict=False
    ):
        (run.directory / "stages.json").write_text(json.dumps({"stalled": stalled, "events": events}))
    (runs[2].directory / "stages.json").write_text(json.dumps({"stalled": False, "events": []}))
    (runs[3].directory / "stages.json").unlink()
    frame = collect([own_sweep])
    for column, values in {
        "2": [7, 7, None, None],
        "3": [None, 9, None, None],
        "stalled": [True, False, False, None],
    }.items():
        found = frame[f"outcome/stage/{column}"]
        assert [None if pd.isna(value) else value for value in found] == values


def test_unfinished_runs_are_listed_and_stay_in_the_table(
    own_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = find_runs([own_sweep])
    (runs[0].directory / "summary.json").unlink()
    (runs[1].directory / "summary.json").unlink()
    (runs[1].directory / "metrics.csv").unlink()
    outputs = [tmp_path / "a.csv", tmp_path / "a.parquet"]
    assert main([str(own_sweep), *(word for path in outputs for word in ("-o", str(path)))]) == 0
    streams = capsys.readouterr()
    assert streams.err.splitlines() == [
        f"unfinished: {runs[0].directory} (its last row is 12 of 12)",
        f"unfinished: {runs[1].directory} (it has no row yet of 12)",
    ]
    assert streams.out.splitlines() == [f"4 runs: {path}" for path in outputs]
    for frame in (pd.read_csv(outputs[0]), pd.read_parquet(outputs[1])):
        assert frame["outcome/status"].tolist() == ["unfinished"] * 2 + ["finished"] * 2
        assert pd.isna(frame["outcome/final/test/loss"][1])
        assert frame["outcome/wall_time_s"].isna().tolist() == [True, True, False, False]
    csv = pd.read_csv(outputs[0], dtype=str)
    assert csv["outcome/step"].tolist()[2:] == ["12", "12"], "steps are integers"


def test_settings_of_mixed_kinds_fit_into_parquet(own_sweep: Path, tmp_path: Path) -> None:
    for run, value in zip(find_runs([own_sweep]), ("a-file.npz", 3, [1, 2]), strict=False):
        text = (run.directory / "config.yaml").read_text()
        (run.directory / "config.yaml").write_text(text.replace("scheduler:\n", f"scheduler:\n  option: {value}\n"))
    assert main([str(own_sweep), "-o", str(tmp_path / "a.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "a.parquet")["scheduler.option"].tolist()[:3] == ["a-file.npz", "3", "[1, 2]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{sweep}", "-o", "{here}/a.xlsx"], "Unknown suffix of {here}/a.xlsx: '.xlsx'; known are .csv, .parquet."),
        (["{sweep}", "-o", "{here}/no/a.csv"], "{here}/no/a.csv cannot be written: there is no folder {here}/no."),
        (["{here}", "-o", "{here}/a.csv"], "{here} holds no runs; give a run directory or a folder above some."),
        (["{here}/x", "-o", "{here}/a.csv"], "{here}/x is no directory; give a run or a folder that holds runs."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(
    small_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"sweep": small_sweep, "here": tmp_path}
    assert main([word.format(**places) for word in arguments]) == 2
    assert capsys.readouterr().err == f"error: {message.format(**places)}\n"
    assert not list(tmp_path.iterdir())
