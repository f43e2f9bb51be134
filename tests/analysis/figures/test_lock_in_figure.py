"""The picture of the lock-in marker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from li2_lightning.analysis.figures import find_figure
from li2_lightning.analysis.figures.lock_in import firing_step, lock_in
from li2_lightning.analysis.figures.style import save
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run
from li2_lightning.theory.updates import FIRING_SLOPE, WINDOW
from tests.analysis.figures.conftest import MakeRun


def with_ratio(make_run: MakeRun, slope: float, start: int, *settings: str) -> Run:
    rows = np.arange(200)
    ratio = 5 * np.exp(slope * np.clip(rows - start, 0, None))
    ratio[:WINDOW] = np.nan
    return make_run(*settings, accuracy=(rows / 200).tolist(), columns={"update/eigengap": ratio.tolist()})


def test_a_dot_where_a_seed_fires(make_run: MakeRun, tmp_path: Path) -> None:
    fires = [with_ratio(make_run, 0.051, start, f"seed={start}") for start in (110, 120)]
    quiet = with_ratio(make_run, 0.01, 120, "optimizer.weight_decay=0")
    assert [firing_step(run) for run in [*fires, quiet]] == [130, 140, None]
    figure = find_figure("lock_in_quick")([*fires, quiet])
    _, ratio, slope = figure.axes
    for axes in (ratio, slope):
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        assert [float(dot.get_xdata()[0]) for dot in dots] == [130, 140]
    assert all(float(line.get_ydata()[0]) > FIRING_SLOPE for line in slope.lines if line.get_marker() == "o")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "weight_decay=0 (0 of 1: does not fire)",
        "weight_decay=0.0002 (2 of 2: fires at 130–140)",
    ]
    save(figure, tmp_path / "a.png")


def test_rows_further_apart_than_a_step_have_no_slope(make_run: MakeRun) -> None:
    run = with_ratio(make_run, 0.05, 120)
    run.metrics.index = run.metrics.index * 2
    with pytest.raises(InputError, match="No run has update/eigengap in a row at every step"):
        lock_in([run, make_run()])
