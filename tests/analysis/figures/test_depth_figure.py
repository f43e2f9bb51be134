"""The picture of the layers: a column for each setting, a curve for each layer, a line where it leaves stage I."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from li2_lightning.analysis.figures import find_figure
from li2_lightning.analysis.figures.depth import MOST_SETTINGS, PANELS, layers
from li2_lightning.analysis.figures.style import save
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run
from li2_lightning.theory.stages import layer_column
from tests.analysis.figures.conftest import MakeRun


def run(make_run: MakeRun, extra: int, seed: int, reached: tuple[int | None, ...]) -> Run:
    """10 rows; layer l has independence l/10, and is in stage II from row reached[l − 1] on."""
    columns: dict[str, list[float]] = {}
    for number, step in enumerate(reached, start=1):
        columns |= {layer_column(name, number): [number / 10] * 10 for name in PANELS}
        columns[f"stage/{number}/index"] = [1 + (step is not None and row >= step) for row in range(10)]
    settings = (f"network.hidden_layers={extra}", f"seed={seed}")
    return make_run(*settings, accuracy=np.linspace(0, 1, 10).tolist(), columns=columns)


def test_each_layer_has_a_curve_and_the_step_at_which_it_leaves_stage_one(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [run(make_run, 0, 0, (3,)), run(make_run, 1, 0, (None, 4)), run(make_run, 1, 1, (None, 6))]
    figure = find_figure("fig09_depth_quick")(runs)
    across = 2
    assert len(figure.axes) == (1 + len(PANELS)) * across
    for column, expected in enumerate([{"layer 1": 0.1}, {"layer 1": 0.1, "layer 2": 0.2}]):
        for row in range(1, 1 + len(PANELS)):
            lines = figure.axes[row * across + column].lines
            drawn = {str(line.get_label()): np.asarray(line.get_ydata())[0] for line in lines}
            assert {name: value for name, value in drawn.items() if name.startswith("layer")} == expected
    independence = figure.axes[across : 2 * across]
    marked = [[line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2] for axes in independence]
    assert marked == [[3.0], [5.0]]
    save(figure, tmp_path / "a.png")


def test_runs_without_the_columns_or_with_too_many_settings_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(InputError, match="gradient/1/independence"):
        layers([make_run()])
    with pytest.raises(InputError, match=f"{MOST_SETTINGS + 1} different settings"):
        layers([run(make_run, extra, 0, (1,)) for extra in range(MOST_SETTINGS + 1)])
