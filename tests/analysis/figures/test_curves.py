"""Curves by what the runs differ in."""

from __future__ import annotations

from pathlib import Path

import pytest

from li2_lightning.analysis.figures import find_figure
from li2_lightning.analysis.figures.curves import MOST_CURVES, curves
from li2_lightning.analysis.figures.style import save
from li2_lightning.errors import InputError
from li2_lightning.runs.load import find_runs
from tests.analysis.figures.conftest import MakeRun


def labels(figure: object) -> list[str]:
    (legend,) = figure.legends  # type: ignore[attr-defined]
    return [text.get_text() for text in legend.get_texts()]


def test_settings_make_curves_and_tasks_panels(make_run: MakeRun, tmp_path: Path) -> None:
    # Two experiments, told apart by their settings and not by their names; their lengths follow the task.
    runs = [
        make_run(f"task.order={order}", f"name={name}", f"network.complex_weights={complex_}", f"seed={seed}",
                 f"max_steps={order}", accuracy=[0.0, seed / 10, 1.0])
        for order in (41, 23)
        for name, complex_ in (("real", "false"), ("complex", "true"))
        for seed in (0, 1, 2)
    ]  # fmt: skip
    figure = curves(runs)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Z23", "Z41", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["test/accuracy", "", "test/loss", ""]
    assert labels(figure) == ["complex_weights=False", "complex_weights=True", "training accuracy"]
    for axes in figure.axes[:2]:
        drawn = [line for line in axes.lines if line.get_label() in labels(figure)]
        assert [line.get_ydata().tolist() for line in drawn] == [[0.0, 0.1, 1.0]] * 2
        assert len({line.get_linestyle() for line in drawn}) == 2, "told apart without colour, too"
    save(figure, tmp_path / "a.png")


def test_splits_make_panels(make_run: MakeRun) -> None:
    runs = [
        make_run("task.order=23", f"data.train_fraction={p}", f"network.readout_init_scale={scale}")
        for p in (0.4, 0.3)
        for scale in (0, 1)
    ]
    figure = curves(runs)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["Z23, n/N=0.299", "Z23, n/N=0.399"]
    assert labels(figure) == ["readout_init_scale=0", "readout_init_scale=1", "training accuracy"]
    assert not figure.get_suptitle(), "single runs have no bands to explain"


def test_many_settings_still_differ_in_grey(make_run: MakeRun) -> None:
    runs = [make_run(f"optimizer.lr={lr}") for lr in range(1, MOST_CURVES + 1)]
    drawn = [line for line in curves(runs).axes[0].lines if "train" not in str(line.get_label())]
    assert len({(str(line.get_color()), str(line.get_linestyle())) for line in drawn}) == MOST_CURVES
    with pytest.raises(InputError, match="13 different settings"):
        curves([*runs, make_run("optimizer.lr=99")])


def test_a_long_run_is_shown_in_logarithms(make_run: MakeRun) -> None:
    long = make_run(accuracy=[0.0] * 2001)
    assert curves([long]).axes[0].get_xscale() == "log"
    assert curves([make_run()]).axes[0].get_xscale() == "linear"


def test_a_run_that_stopped_early_is_explained(make_run: MakeRun) -> None:
    runs = [make_run(f"seed={seed}", "stop_at_test_accuracy=0.9", accuracy=[0.0, 1.0]) for seed in (0, 1)]
    assert "keeps its last value" in curves(runs).get_suptitle()


def test_nodes_from_the_checkpoint_are_those_of_the_pictures(own_sweep: Path, tmp_path: Path) -> None:
    import numpy as np

    from li2_lightning.analysis.figures.features import learned_nodes

    (run,) = find_runs([own_sweep / "latest"])
    with_pictures = learned_nodes(run)
    (run.directory / "features" / "last.npz").unlink()
    from_checkpoint = learned_nodes(run)
    assert with_pictures is not None
    assert from_checkpoint is not None
    assert np.array_equal(with_pictures[0], from_checkpoint[0])
    assert np.array_equal(with_pictures[1].table, from_checkpoint[1].table)
    assert with_pictures[2] == from_checkpoint[2] == 12


@pytest.mark.parametrize("name", ["fig10_real_quick", "fourier_lottery"])
def test_every_experiment_has_its_rows(name: str, make_run: MakeRun) -> None:
    columns = {"features/purity": [0, 1]}
    shown = [axes.get_ylabel() for axes in find_figure(name)([make_run(columns=columns)]).axes]
    assert shown[0] == "test/accuracy"
    assert ("features/purity" in shown) == (name != "fig10_real_quick")


def test_it_says_what_it_lacks(make_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"None of the runs has the column features/purity"):
        find_figure("fourier_lottery")([make_run()])
    with pytest.raises(InputError, match=r"None of the runs has the rows"):
        curves([make_run(accuracy=[0.0])])
