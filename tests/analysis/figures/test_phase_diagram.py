"""The jump of test accuracy: found, and drawn beside its prediction."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from li2_lightning.analysis.figures.phase_diagram import find_jump, learning_rate, phase_diagram
from li2_lightning.analysis.figures.style import save
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run
from tests.analysis.figures.conftest import MakeRun


def sweep(make_run: MakeRun, medians: dict[float, float], *settings: str, order: int = 23, seeds: int = 3) -> list[Run]:
    """Runs whose final test accuracy spreads by .1 around a median for each fraction."""
    return [
        make_run(f"task.order={order}", f"data.train_fraction={fraction}", f"seed={seed}", *settings,
                 accuracy=[0.0, median + 0.1 * (seed - 1)])
        for fraction, median in medians.items()
        for seed in range(seeds)
    ]  # fmt: skip


def line(axes: Axes, marker: str) -> list[tuple[float, float]]:
    (found,) = [line for line in axes.lines if line.get_marker() == marker]
    return list(zip(map(float, found.get_xdata()), map(float, found.get_ydata()), strict=True))


def test_the_jump_is_where_the_median_rises(make_run: MakeRun) -> None:
    jump = find_jump(sweep(make_run, {0.2: 0.0, 0.3: 0.05, 0.4: 0.2, 0.5: 0.6, 0.6: 0.95, 0.7: 0.99}))
    fractions = [math.floor(share * 23**2 + 1e-9) / 23**2 for share in (0.3, 0.4, 0.5, 0.6)]
    assert (jump.order, jump.irrep) == (23, 1)
    assert (jump.below, jump.above) == (fractions[0], fractions[3])
    assert jump.half == pytest.approx(fractions[1] + 0.75 * (fractions[2] - fractions[1]))


def test_no_jump_no_numbers(make_run: MakeRun) -> None:
    jump = find_jump(sweep(make_run, {0.2: 0.2, 0.3: 0.4}))
    assert (jump.below, jump.above, jump.half) == (None, None, None)
    # It falls back: the bar begins where every larger fraction generalizes.
    jump = find_jump(sweep(make_run, {0.2: 0.05, 0.3: 0.95, 0.4: 0.8, 0.5: 0.95}))
    assert jump.above == pytest.approx(0.5, abs=0.01)


def test_a_panel_a_task_with_its_boundary(make_run: MakeRun, tmp_path: Path) -> None:
    medians = {0.2: 0.05, 0.3: 0.5, 0.4: 0.95}
    runs = [*sweep(make_run, medians, order=31), *sweep(make_run, medians, order=23)]
    figure = phase_diagram(runs)
    small, large, jumps = figure.axes
    assert small.get_title(loc="left").startswith("Z23")
    assert large.get_title(loc="left").startswith("Z31")
    for axes, order in ((small, 23), (large, 31)):
        assert [y for _, y in line(axes, "o")] == pytest.approx([0.05, 0.5, 0.95]), "the median"
        (band,) = axes.collections
        assert band.get_paths()[0].get_extents().y1 == pytest.approx(1.05)
        assert axes.lines[-1].get_xdata()[0] == pytest.approx(2.7482 * math.log(order) / order)
    assert [order for order, _ in line(jumps, "o")] == [23, 31]
    assert "lowest to highest seed" in figure.get_suptitle()
    save(figure, tmp_path / "a.png")


def test_other_settings_make_series_and_nonabelian_groups_a_curve_of_their_own(make_run: MakeRun) -> None:
    medians = {0.3: 0.05, 0.4: 0.6, 0.5: 0.95}
    runs = [run for rate in ("0.001", "0.002") for run in sweep(make_run, medians, f"optimizer.lr={rate}", seeds=2)]
    figure = phase_diagram(runs)
    assert figure.axes[0].get_legend_handles_labels()[1] == ["lr=0.001", "lr=0.002", "predicted"]
    group = ["task.name=symmetric", "task.degree=4"]
    # max d_k = 3, so the boundary is 1.5 times that of an Abelian group.
    assert find_jump([make_run(*group, f"data.train_fraction={p}") for p in (0.3, 0.5)]).irrep == 3
    mixed = [*runs, *(make_run(*group, f"data.train_fraction={p}") for p in (0.3, 0.5))]
    labels = phase_diagram(mixed).axes[-1].get_legend_handles_labels()[1]
    assert labels[:2] == ["predicted, max d_k=1, 2", "predicted, max d_k=3"]


def test_the_share_of_seeds_that_generalize(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("task.order=23", f"data.train_fraction={p}", f"optimizer.lr={lr}", f"seed={seed}",
                 accuracy=[0.0, 0.95 if p > 0.35 and (lr < 0.005 or seed == 0) else 0.2])
        for p in (0.3, 0.4, 0.5)
        for lr in (1e-3, 1e-2)
        for seed in (0, 1)
    ]  # fmt: skip
    runs[-1] = make_run("task.order=23", "data.train_fraction=0.5", "optimizer.lr=0.01", "seed=0", status="diverged")
    figure = learning_rate(runs)
    axes = figure.axes[0]
    shares = axes.collections[0].get_array().tolist()
    assert shares == [[0.0, 1.0, 1.0], [0.0, 0.5, 0.5]], "a diverged run does not generalize"
    assert [text.get_text() for text in axes.texts][-1] == "1/2"
    assert axes.lines[0].get_xdata()[0] == pytest.approx(2.7482 * math.log(23) / 23)
    save(figure, tmp_path / "a.png")


def test_it_says_what_it_lacks(make_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"differ in their training fraction, data.train_fraction"):
        phase_diagram([make_run("seed=0"), make_run("seed=1")])
    with pytest.raises(InputError, match="has come to its end"):
        phase_diagram([make_run(status=None)])
    with pytest.raises(InputError, match=r"differ in optimizer.lr"):
        learning_rate([make_run(f"data.train_fraction={p}") for p in (0.3, 0.4)])
