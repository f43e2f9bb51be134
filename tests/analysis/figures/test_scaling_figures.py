"""The five figures of scaling laws, of runs whose outcomes a test chooses."""

from __future__ import annotations

import pytest

from li2_lightning.analysis import scaling
from li2_lightning.analysis.figures import find_figure
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run
from tests.analysis.figures.conftest import MakeRun


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested in test_scaling.py."""
    monkeypatch.setattr(scaling, "DRAWS", 20)


def boundary(make_run: MakeRun, *task: str, above: float, fractions: tuple[float, ...], seeds: int = 4) -> list[Run]:
    """Runs that generalize from a share of pairs on, the first seed a little earlier."""
    return [
        make_run(*task, f"data.train_fraction={p}", f"seed={seed}",
                 accuracy=[0.0, float(p > above - 0.03 * (seed == 0))], columns={"train/accuracy": [0.0, 1.0]})
        for p in fractions
        for seed in range(seeds)
    ]  # fmt: skip


def texts(figure_name: str, runs: list[Run]) -> str:
    """Everything that the legends and titles of a figure say."""
    axes = find_figure(figure_name)(runs).axes
    legends = [text.get_text() for each in axes if each.get_legend() for text in each.get_legend().get_texts()]
    return "\n".join([*legends, *(each.get_title(loc="left") for each in axes)])


def test_the_boundary_of_each_order_and_the_drift_of_each_law(make_run: MakeRun) -> None:
    fractions = (0.2, 0.3, 0.4, 0.5, 0.6)
    runs = [
        run
        for order, above in ((11, 0.45), (23, 0.35))
        for run in boundary(make_run, f"task.order={order}", above=above, fractions=fractions)
    ]
    said = texts("scaling_samples_quick", runs)
    assert "Z11: p½ = 0.4" in said
    assert "Z23: p½ = 0.3" in said
    assert said.count("drifts as M^") == 3
    assert "training accuracy ≥ 1" in said
    # A control that generalizes everywhere changes no fit.
    control = [make_run("task.order=11", "data.label_noise=1", f"data.train_fraction={p}") for p in fractions]
    with_control = texts("scaling_samples", [*runs, *control])
    assert [line for line in with_control.splitlines() if "Z11" in line] == [
        line for line in said.splitlines() if "Z11" in line
    ]
    # Runs that did not even memorize change no fit, and are counted.
    lost = [
        make_run("task.order=11", f"data.train_fraction={p}", columns={"train/accuracy": [0, 0.2]}) for p in (0.6, 0.8)
    ]
    assert texts("scaling_samples", [*runs, *lost]) == said
    assert "2 runs that did not memorize are left out" in find_figure("scaling_samples")([*runs, *lost]).get_suptitle()
    with pytest.raises(InputError, match="which none has"):
        find_figure("scaling_samples")(lost)
    with pytest.raises(InputError, match="two orders"):
        find_figure("scaling_samples")(runs[:20])


def test_groups_stand_at_their_largest_dimensions(make_run: MakeRun) -> None:
    runs = [
        run
        for index, above in ((12, 0.65), (4, 0.45))
        for run in boundary(make_run, "task.name=small_group", "task.order=24", f"task.index={index}", above=above,
                            fractions=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8))
    ]  # fmt: skip
    complex_, real = find_figure("scaling_irreps")(runs).axes
    assert {float(line.get_xdata()[0]) for line in complex_.lines if len(line.get_xdata()) == 1} == {3, 2}
    # C3 : Q8 has quaternionic irreps of dimension 2, so of real dimension 4; S4 has real ones only.
    assert {float(line.get_xdata()[0]) for line in real.lines if len(line.get_xdata()) == 1} == {3, 4}


def test_the_exponent_of_each_factor(make_run: MakeRun) -> None:
    steps = {1e-3: 8, 2e-3: 4, 4e-3: 2}
    runs = [
        make_run(f"optimizer.lr={rate}", f"optimizer.weight_decay={decay}", f"seed={seed}",
                 accuracy=[float(step >= steps[rate]) for step in range(10)],
                 columns={"gradient/norm": [float(step) for step in range(10)]})
        for rate, decay in ((1e-3, 2e-4), (2e-3, 2e-4), (4e-3, 2e-4), (1e-3, 0.0))
        for seed in range(4)
    ]  # fmt: skip
    said = texts("scaling_time", runs)
    assert "test accuracy .9  [-1 (-1 to -1)]" in said
    with pytest.raises(InputError, match="gradient"):
        find_figure("scaling_time")([make_run()])


def test_the_exponent_of_the_last_gradient(make_run: MakeRun) -> None:
    """For each width, and of the largest gradient for the largest width; a run without decay is in no fit."""
    runs = [
        make_run(f"optimizer.weight_decay={decay}", f"network.width={K}", f"seed={seed}",
                 accuracy=[0.0, 0.0, 0.0],
                 columns={"gradient/norm": [1.0, 1e9 * decay**2, 100 * decay if K == 64 else decay**0.5]})
        for decay in (0.0, 1e-4, 1e-3, 1e-2)
        for K in (8, 64)
        for seed in range(2)
    ]  # fmt: skip
    said = texts("scaling_limit_quick", runs)
    assert "K = 8, n = 2016, at the end  [0.5 (0.5 to 0.5)]" in said
    assert "K = 64, n = 2016, at the end  [1 (1 to 1)]" in said
    assert "K = 64, largest  [2 (2 to 2)]" in said
    assert [line for line in said.splitlines() if line.startswith("λ")] == [
        "λ = 0", "λ = 0.0001", "λ = 0.001", "λ = 0.01"
    ]  # fmt: skip
    with pytest.raises(InputError, match="gradient"):
        find_figure("scaling_limit")([make_run()])


def test_the_width_that_covers_all_irreps(make_run: MakeRun) -> None:
    runs = [
        make_run(f"task.order={order}", f"network.width={K}", f"seed={seed}",
                 columns={"features/coverage": [0, min(order // 2, K // 2 + (seed == 0))]})
        for order in (7, 15)
        for K in (4, 6, 8, 12, 16, 24)
        for seed in range(4)
    ]  # fmt: skip
    said = texts("scaling_width_quick", runs)
    assert "Z7, 3 irreps" in said
    assert "K½ over that of independent nodes = " in said
    right = find_figure("scaling_width")(runs).axes[1]
    # Three equally likely irreps: all are found with 4, 5 nodes in 36/81, 150/243 of the cases; seven with
    # 16, 17 in Σ(−1)^j·C(7,j)·(1−j/7)^K = .498, .557.
    (curve,) = [line for line in right.lines if line.get_label() == "independent nodes, Theorem 8"]
    assert curve.get_ydata().tolist() == [5, 17]
    with pytest.raises(InputError, match="coverage"):
        find_figure("scaling_width")([make_run()])
