"""``li2 figures COLUMN,COLUMN``: columns over the step, a curve for each setting in which the runs differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from li2_lightning.cli.main import main


def test_a_panel_for_each_column(small_sweep: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.svg"
    assert main(["figures", "train/loss,gradient/coupling", str(small_sweep), "-o", str(picture)]) == 0
    text = picture.read_text(encoding="utf-8")
    for shown in (">train/loss<", ">gradient/coupling<", "0.001", "0.02"):
        assert shown in text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("test/los", "test/los; see which callback measures it. Did you mean 'test/loss'?"),
        ("test/loss,gradient/nrm", "gradient/nrm; see which callback measures it. Did you mean 'gradient/norm'?"),
    ],
)
def test_a_column_that_is_not_there_is_one_sentence(
    small_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: str, message: str
) -> None:
    assert main(["figures", columns, str(small_sweep), "-o", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err == f"error: None of the runs has the column {message}\n"
    assert not list(tmp_path.iterdir())
