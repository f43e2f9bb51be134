"""The pictures of optimizer_race and fig08_muon: what is drawn is what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from li2_lightning.analysis.figures.optimizers import best_by_width, coverage, draw_muon, draw_race
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


def tiny(width: int, optimizer: str, lr: float, loss: float, *, diverged: bool = False) -> Run:
    run = made(50, network={"width": width}, optimizer={"hidden": {"name": optimizer, "lr": lr}})
    run.metrics["test/loss"] = loss
    return Run(run.directory, run.config, {"status": "diverged" if diverged else "finished"}, None) if diverged else run


def test_the_best_learning_rate_is_that_of_the_lowest_median_loss() -> None:
    runs = [tiny(8, "adam", lr, loss) for lr, losses in ((0.1, (1, 2, 9)), (0.2, (3, 3, 3))) for loss in losses]
    runs += [tiny(8, "muon", 0.1, 5), tiny(8, "muon", 0.2, 0, diverged=True), tiny(16, "muon", 0.3, 4)]
    best = best_by_width(runs)
    chosen = {
        name: {K: group[0]["optimizer.hidden.lr"] for K, group in widths.items()} for name, widths in best.items()
    }
    assert chosen == {"adam": {8: 0.1}, "muon": {8: 0.1, 16: 0.3}}
    with pytest.raises(InputError, match="None of the runs has ended"):
        best_by_width([made(None, ended=False)])


def test_coverage_is_drawn_beside_what_theorem_8_expects(tiny_run: Callable[..., Any]) -> None:
    for width in (4, 8):
        for name in ("adam", "muon"):
            last = tiny_run(
                "max_steps=5", f"network.width={width}", f"optimizer.hidden.name={name}", "optimizer.lr=0.02"
            )
    runs = find_runs([last.directory.parents[1]])
    loss, accuracy, covered = draw_muon(runs).axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("test loss", "test accuracy")
    drawn = {line.get_label(): line for line in covered.lines}
    predicted = drawn["predicted, Muon (κ = ½)"]
    np.testing.assert_allclose(predicted.get_ydata(), expected_coverage(3, 8, 0.5)[4:])
    assert predicted.get_xdata().tolist() == [4, 5, 6, 7, 8]
    assert drawn["one node each (κ = 0)"].get_ydata().tolist() == [3] * 5
    for run in runs:
        assert coverage(run) == run.metrics["features/coverage"].iloc[-1]
