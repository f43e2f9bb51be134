"""The notebook of examples/ runs from its first cell to its last."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import train

SCRIPT = Path(train.__file__).parent / "examples" / "read_runs.py"


def test_it_reads_a_run_and_draws_a_curve(
    small_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "curve.png"
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(small_sweep / "latest"), str(picture)])
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    names = runpy.run_path(str(SCRIPT))
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    curves = [line.get_ydata().tolist() for line in names["axes"].lines[:2]]
    metrics = names["run"].metrics
    assert curves == [metrics["train/accuracy"].tolist(), metrics["test/accuracy"].tolist()]
    shown = capsys.readouterr().out
    assert "learning rate 0.02 and weight decay 0.0002" in shown
    assert "'W': (14, 8)" in shown
    plt.close(names["figure"])
