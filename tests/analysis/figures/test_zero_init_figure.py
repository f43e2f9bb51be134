"""The picture of zero-init: accuracy for each training fraction, features early on, steps to test accuracy .9."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from li2_lightning.analysis.figures import find_figure
from li2_lightning.analysis.figures.style import save
from li2_lightning.analysis.figures.zero_init import MOST_FRACTIONS, zero_init
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run
from tests.analysis.figures.conftest import MakeRun


def run(make_run: MakeRun, fraction: float, scale: int, reached: int | None, seed: int = 0, order: int = 23) -> Run:
    """100 rows; test accuracy 1 from row ``reached`` on."""
    rows = np.arange(100)
    accuracy = np.zeros(100) if reached is None else (rows >= reached) * 1.0
    settings = f"task.order={order}", f"data.train_fraction={fraction}", f"network.readout_init_scale={scale}"
    purity = {"features/purity": (0.2 + rows / 200).tolist()}
    return make_run(*settings, f"seed={seed}", accuracy=accuracy.tolist(), columns=purity)


def test_a_marker_for_each_seed_at_its_step(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [run(make_run, 0.3, 0, 40), run(make_run, 0.3, 1, None), run(make_run, 0.5, 0, 10)]
    runs += [run(make_run, 0.5, 1, 20), run(make_run, 0.5, 1, 30, seed=1)]
    figure = find_figure("fig14_zero_init_quick")(runs)
    above, below = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title(loc="left") for axes in above] == ["n/N = 0.299", "n/N = 0.499"]
    assert [axes.get_ylabel() for axes in below] == ["features/purity", "step"]
    markers = {
        marker: {
            (float(x), float(y))
            for line in below[-1].lines
            if line.get_marker() == marker
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        }
        for marker in ("o", "s")
    }
    low, high = (round(runs[index].train_fraction, 4) for index in (0, 2))
    assert markers["o"] == {(low, 40.0), (high, 10.0)}
    assert {point for point in markers["s"] if point[0] == high} == {(high, 20.0), (high, 30.0)}
    never = [y for x, y in markers["s"] if x == low]
    assert len(never) == 1
    assert never[0] > 99, "a run that never gets there is drawn above the longest"
    save(figure, tmp_path / "a.png")


def test_one_task_and_few_fractions(make_run: MakeRun) -> None:
    with pytest.raises(InputError, match="several tasks"):
        zero_init([run(make_run, 0.3, 0, 5), run(make_run, 0.3, 0, 5, order=31)])
    with pytest.raises(InputError, match=f"{MOST_FRACTIONS + 1} training fractions"):
        zero_init([run(make_run, 0.1 * (k + 1), 0, 5) for k in range(MOST_FRACTIONS + 1)])
    with pytest.raises(InputError, match="train first"):
        zero_init([])
