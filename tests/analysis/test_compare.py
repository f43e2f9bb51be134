"""What differs between runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from li2_lightning.analysis.collect import collect
from li2_lightning.analysis.compare import comparison
from li2_lightning.runs.load import find_runs, groups_of_seeds
from tests.conftest import li2_command

main = li2_command("compare")


def test_settings_and_outcomes_that_differ(small_sweep: Path) -> None:
    table = comparison(groups_of_seeds(find_runs([small_sweep])))
    assert table["settings"] == [["optimizer.lr", "0.001", "0.02"]]
    frame = collect([small_sweep])
    losses = [
        frame.loc[frame["optimizer.lr"] == rate, "outcome/final/test/loss"].sort_values().tolist()
        for rate in (1e-3, 2e-2)
    ]
    (row,) = [row for row in table["outcomes"] if row[0] == "test loss at the end"]
    assert row[1:] == [f"{(low + high) / 2:.4g} ({low:.4g}–{high:.4g})" for low, high in losses]
    assert not [row for row in table["outcomes"] if row[0] in ("status", "last row")], "these are the same"


def test_seeds_are_compared_with_each_other(
    small_sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs = find_runs([small_sweep])[:2]
    assert main([str(run.directory) for run in runs]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith(("A: ", "B: "))] == [
        f"A: {runs[0].directory}",
        f"B: {runs[1].directory}",
    ]
    assert all(len(line) <= 80 for line in shown.splitlines() if not line.startswith(("A: ", "B: ")))
    for run in runs:
        assert f"{run.metrics['test/loss'].iloc[-1]:.4g}" in shown


def test_a_setting_that_is_null_in_some_runs_reads_as_in_yaml(own_sweep: Path) -> None:
    for run in find_runs([own_sweep]):
        path = run.directory / "config.yaml"
        path.write_text(
            path.read_text().replace("ridge: null", "ridge: 0.5" if run["optimizer.lr"] > 0.01 else "ridge: null")
        )
    table = comparison(groups_of_seeds(find_runs([own_sweep])))
    assert ["network.ridge", "null", "0.5"] in table["settings"]


def test_some_seeds_that_never_got_there(own_sweep: Path) -> None:
    for run in find_runs([own_sweep])[:1]:
        event = {"from": 1, "to": 2, "step": 7}
        (run.directory / "stages.json").write_text(json.dumps({"stalled": True, "events": [event]}))
    table = comparison(groups_of_seeds(find_runs([own_sweep])))
    rows = {row[0]: row[1:] for row in table["outcomes"]}
    # Directories are sorted by their hash, so the first run may belong to either group.
    assert sorted(rows["stage II at"]) == ["7 (1 never)", "–"]
    assert sorted(rows["stalled"]) == ["0 of 2", "1 of 2"]


def test_what_a_run_is_called_is_text(own_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, run in enumerate(find_runs([own_sweep])):
        text = (run.directory / "config.yaml").read_text()
        (run.directory / "config.yaml").write_text(text.replace("name: small", f"name: '[red]{index % 2}[/x]'"))
    assert main([str(own_sweep)]) == 0
    assert "[red]1[/x]" in re.sub(r"\s", "", capsys.readouterr().out)


def test_pictures_and_a_page(small_sweep: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("a.png", "a.svg", "a.html")]
    assert main([str(small_sweep), *(word for path in outputs for word in ("-o", str(path)))]) == 0
    assert outputs[0].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    svg = outputs[1].read_text()
    assert "lr=0.02" in svg
    assert "gradient/norm" in svg
    figures = json.loads(re.findall(r'id="figures">(.*?)</script>', outputs[2].read_text(), re.DOTALL)[0])
    titles = [figure["layout"]["title"]["text"] for figure in figures.values()]
    assert {"test/accuracy", "gradient/norm", "stage/index"} <= set(titles)
    (losses,) = [figure for figure in figures.values() if figure["layout"]["title"]["text"] == "test/loss"]
    assert len(losses["data"]) == 4, "a line for each run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{sweep}/latest"], "There is only one run to compare; name another."),
        (
            ["{sweep}", "-o", "{here}/a.txt"],
            "Unknown suffix of {here}/a.txt: '.txt'; known are .html, .pdf, .png, .svg.",
        ),
        (["{here}/x"], "{here}/x is no directory; give a run or a folder that holds runs."),
    ],
)
def test_what_cannot_be_is_one_sentence(
    small_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"sweep": small_sweep, "here": tmp_path}
    assert main([word.format(**places) for word in arguments]) == 2
    assert capsys.readouterr().err == f"error: {message.format(**places)}\n"


def test_more_than_fit_beside_each_other(own_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_) = find_runs([own_sweep])
    text = (first.directory / "config.yaml").read_text()
    for width in range(1, 7):
        (own_sweep / str(width)).mkdir()
        (own_sweep / str(width) / "config.yaml").write_text(text.replace("width: 8", f"width: {width}"))
    assert main([str(own_sweep)]) == 2
    assert "fall into 8 groups, of which 6 fit" in capsys.readouterr().err
