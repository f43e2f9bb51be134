"""The pictures of optimizer_race and fig08_muon: what is drawn is what was found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from li2_lightning.analysis.figures.optimizers import (
    DECAY,
    RATE,
    WIDTH,
    draw_muon,
    draw_race,
    measured_factor,
    tuned,
)
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, find_runs
from li2_lightning.theory.muon import expected_coverage
from tests.analysis.test_race import adam, made, with_hidden


def test_every_setting_is_drawn_and_the_best_ones_learn_on_the_right() -> None:
    runs = [
        *(
            adam(lr, 0.1, step, seed)
            for lr, steps in ((1e-3, (40, 44)), (1e-2, (20, None)))
            for seed, step in enumerate(steps)
        ),
        with_hidden(30, name="muon", lr=0.02),
    ]
    left, right = draw_race(runs).axes
    grey = [line for line in left.lines if line.get_marker() == "|"]
    assert [sorted(line.get_xdata()) for line in grey] == [[20, 40, 44, 135], [30]], "135: never, beyond max_steps=100"
    best = [line for line in left.lines if line.get_marker() == "o"]
    assert [sorted(line.get_xdata()) for line in best] == [[40, 44], [30]], "most seeds before fewest steps"
    assert [text.get_text().splitlines() for text in left.get_yticklabels()] == [
        ["adam", "2 of 2 seeds"], ["muon / adam", "1 of 1 seeds"]
    ]  # fmt: skip
    curves = {line.get_label(): line for line in right.lines if not line.get_label().startswith("_")}
    assert list(curves) == ["adam", "muon / adam"]
    assert np.argmax(curves["muon / adam"].get_ydata() >= 0.99) == 30


def tiny(width: int, lr: float, decay: float, seed: int, loss: float, *, diverged: bool = False) -> Run:
    hidden = {"name": "muon", "lr": lr, "decoupled": True, "momentum": 0.99}
    run = made(50, seed=seed, network={"width": width}, optimizer={"weight_decay": decay, "hidden": hidden})
    run.metrics["test/loss"] = loss
    return Run(run.directory, run.config, {"status": "diverged" if diverged else "finished"}, None) if diverged else run


def test_a_setting_is_tuned_on_other_seeds() -> None:
    """Halves are seeds 0, 2, 4 and 1, 3. At lr .1 the even seeds are best, at .2 the odd ones."""
    low_for_even = [tiny(8, 0.1, 1e-4, seed, (1, 9)[seed % 2]) for seed in range(5)]
    low_for_odd = [tiny(8, 0.2, 1e-4, seed, (8, 2)[seed % 2]) for seed in range(5)]
    gone = [tiny(8, 0.3, 1e-4, seed, 0, diverged=True) for seed in range(5)]
    runs = [*low_for_even, *low_for_odd, *gone, *(tiny(16, 0.4, 1e-3, seed, 1) for seed in range(5))]
    ((name, widths),) = tuned(runs, WIDTH, RATE, DECAY).items()
    assert name == "muon, decoupled decay, momentum 0.99"
    assert {K: {(run["optimizer.hidden.lr"], run["seed"]) for run in group} for K, group in widths.items()} == {
        8: {(0.2, 0), (0.2, 2), (0.2, 4), (0.1, 1), (0.1, 3)},
        16: {(0.4, seed) for seed in range(5)},
    }
    ((_, decays),) = tuned(runs, DECAY, RATE).items()
    assert [(decay, len(group)) for decay, group in decays.items()] == [(1e-4, 5), (1e-3, 5)]
    with pytest.raises(InputError, match="needs two seeds"):
        tuned([*low_for_even[:1], made(None, seed=1, ended=False)], WIDTH, RATE)


def test_coverage_is_drawn_beside_what_theorem_8_expects(tiny_run: Callable[..., Any]) -> None:
    for width, name, seed in itertools.product((4, 8), ("adam", "muon"), (0, 1)):
        last = tiny_run(
            "max_steps=5",
            f"network.width={width}",
            f"optimizer.hidden.name={name}",
            "optimizer.lr=0.02",
            f"seed={seed}",
        )
    runs = find_runs([last.directory.parents[1]])
    figure = draw_muon(runs)
    axes = figure.axes
    assert [panel.get_ylabel() for panel in axes] == 2 * ["test loss", "test accuracy", axes[2].get_ylabel()]
    assert [panel.get_xlabel() for panel in axes] == 3 * ["K (hidden nodes)"] + 3 * ["λ, at K = 8"]
    assert [len(panel.containers) for panel in axes] == 6 * [2]
    drawn = {line.get_label(): line for line in axes[2].lines}
    predicted = drawn["κᵃ = ½"]
    np.testing.assert_allclose(predicted.get_ydata(), expected_coverage(3, 8, 0.5)[4:])
    assert predicted.get_xdata().tolist() == [4, 5, 6, 7, 8]
    assert drawn["κᵃ = 0 (one node each)"].get_ydata().tolist() == [3] * 5
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    fits = {name: measured_factor(widths) for name, widths in tuned(runs, WIDTH, RATE).items()}
    for name, fit in fits.items():
        assert fit is not None
        assert fit[1] <= fit[0] <= fit[2]
        assert f"{name}: κᵃ = {fit[0]:.2f} ({fit[1]:.2f}–{fit[2]:.2f})" in labels
