"""Columns of several runs in one picture, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from li2_lightning.analysis.figures.columns import main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        folder = tmp_path / "wd" / f"0123-s{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,test/loss,interaction/repulsion\n0,1.0,0.1\n1,0.9,\n2,0.8,0.2\n")
    return tmp_path


def test_a_panel_a_column(runs: Path) -> None:
    assert main(["test/loss,interaction/repulsion", str(runs / "wd"), "-o", str(runs / "a.png")]) == 0
    assert (runs / "a.png").read_bytes().startswith(PNG)
    assert main(["test/loss", str(runs / "wd"), "-o", str(runs / "a.svg")]) == 0
    assert "wd (2 runs)" in (runs / "a.svg").read_text() or "<svg" in (runs / "a.svg").read_text()


@pytest.mark.parametrize(
    ("column", "folder", "message"),
    [("test/los", "wd", "Did you mean 'test/loss'"), ("test/loss", "nothing", "holds no runs")],
)
def test_what_is_not_there_is_one_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str], column: str, folder: str, message: str
) -> None:
    assert main([column, str(runs / folder), "-o", str(runs / "a.png")]) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "a.png").exists()
