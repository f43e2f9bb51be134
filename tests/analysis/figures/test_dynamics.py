"""Seeds as bands, stages as shades."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from li2_lightning.analysis.figures.dynamics import caption, dynamics
from li2_lightning.analysis.figures.style import MOST_POINTS, new_figure, save, seed_band, shade_stages
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, find_runs


def run_with(metrics: dict[int, float], stop_at: float | None = None, stages: dict | None = None) -> Run:
    config = {"stop_at_test_accuracy": stop_at, "seed": 0}
    run = Run(Path(), config, {"status": "finished"}, stages)
    run.__dict__["metrics"] = pd.DataFrame({"test/accuracy": metrics}).rename_axis("step")
    return run


def staged(*steps: int, stalled: bool = False) -> Run:
    events = [{"to": stage, "step": step} for stage, step in enumerate(steps, start=2)]
    return run_with({0: 0.0, 100: 1.0}, stages={"stalled": stalled, "events": events})


def test_a_band_is_the_median_between_lowest_and_highest() -> None:
    band = seed_band([run_with({0: a, 1: 2 * a}) for a in (0.1, 0.3, 0.2)], "test/accuracy")
    assert band.to_dict("index") == {
        0: {"median": 0.2, "low": 0.1, "high": 0.3},
        1: {"median": 0.4, "low": 0.2, "high": 0.6},
    }


def test_a_run_that_stopped_at_its_target_keeps_its_last_value() -> None:
    slow = run_with({0: 0.0, 1: 0.2, 2: 0.4, 3: 0.6}, stop_at=0.9)
    fast = run_with({0: 0.5, 1: 1.0}, stop_at=0.9)
    assert seed_band([slow, fast], "test/accuracy")["high"].tolist() == [0.5, 1.0, 1.0, 1.0]
    killed = run_with({0: 0.5, 1: 0.8}, stop_at=0.9)
    assert seed_band([slow, killed], "test/accuracy")["high"].tolist() == [0.5, 0.8, 0.4, 0.6]


def test_undefined_cells_and_absent_columns() -> None:
    band = seed_band([run_with({0: math.nan, 1: 0.5}), run_with({0: 0.1, 1: math.nan})], "test/accuracy")
    assert band["median"].tolist() == [0.1, 0.5]
    assert seed_band([run_with({0: 1.0})], "energy/mean").empty


def test_a_long_curve_is_thinned_but_keeps_its_ends() -> None:
    band = seed_band([run_with({step: step / 1e4 for step in range(10_001)})], "test/accuracy")
    assert len(band) == MOST_POINTS
    assert (band.index[0], band.index[-1]) == (0, 10_000)


def shades(*runs: Run) -> list[tuple[float, float]]:
    axes = new_figure(2, 2).subplots()
    shade_stages(axes, runs, 100)
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]


def test_a_stage_begins_where_half_of_the_seeds_have_entered_it() -> None:
    assert shades(staged(20, 60)) == [(0, 20), (20, 60), (60, 100)]
    assert shades(staged(20, 60), staged(22, 70), staged(30)) == [(0, 22), (22, 70), (70, 100)]
    assert shades(staged(20, 60), staged(22), staged(30)) == [(0, 22), (22, 100)]
    assert shades(run_with({0: 0.0})) == []


def test_the_caption_counts_the_seeds() -> None:
    text = caption([staged(20, 60), staged(24, 60), staged(22, stalled=True)])
    assert "lowest to highest seed" in text
    assert "II from 22 (20–24) in 3 of 3" in text
    assert "III from 60 (60) in 2 of 3" in text
    assert text.endswith("1 of 3 stalled")
    assert "seed" not in caption([staged(20)]), "a single run has no band"


def test_a_part_for_each_group_of_seeds_on_one_scale(small_sweep: Path) -> None:
    figure = dynamics(find_runs([small_sweep]))
    assert len(figure.subfigs) == 2
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles[0].startswith("lr=0.001\nZ7   K=8")
    assert titles[1].startswith("lr=0.02\nZ7   K=8")
    energies = [
        next(axes for axes in part.axes if axes.get_ylabel() == "energy at unit norm") for part in figure.subfigs
    ]
    assert energies[0].get_ylim() == energies[1].get_ylim()
    (line,) = [line for line in energies[1].lines if line.get_label() == "mean energy E"]
    seeds = [run.metrics["energy/mean"] for run in find_runs([small_sweep]) if run["optimizer.lr"] == 2e-2]
    assert line.get_ydata() == pytest.approx(((seeds[0] + seeds[1]) / 2).tolist())


def test_it_says_what_it_lacks(own_sweep: Path) -> None:
    runs = find_runs([own_sweep])
    for number, run in enumerate(runs):
        (run.directory / "config.yaml").write_text(json.dumps({**run.config, "loss": str(number)}))
        # Another config has another hash.
        run.directory.rename(run.directory.with_name(f"{number:010}-s{run['seed']}"))
    more = find_runs([own_sweep])
    more[0].config["optimizer"]["lr"] = 7
    with pytest.raises(InputError, match="fall into 5 groups"):
        dynamics([*more, runs[0]])
    for run in more:
        (run.directory / "metrics.csv").write_text("step,test/loss\n0,1.0\n")
    with pytest.raises(InputError, match="None of the runs has the rows"):
        dynamics(find_runs([own_sweep]))


def test_values_that_are_all_zero_are_drawn(make_run: Callable[..., Run], tmp_path: Path) -> None:
    """A learning rate of zero: no update, nothing a logarithmic axis could show."""
    save(dynamics([make_run(accuracy=[0.0] * 3, columns={"update/hidden": [math.nan, 0.0, 0.0]})]), tmp_path / "a.png")
