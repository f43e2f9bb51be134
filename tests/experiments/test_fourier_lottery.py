"""arXiv:2602.16849: memorized near step 1300, generalized thousands of steps later by decay alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow


def test_memorization_plateau_and_clean_up(sweep: Callable[[str], Sweep]) -> None:
    (run,) = sweep("fourier_lottery_quick").runs
    assert run.first_step("train/accuracy", 0.95) == pytest.approx(1300, abs=150)
    accuracy, purity = run.metrics["test/accuracy"], run.metrics["features/purity"]
    assert accuracy[2000:3000].max() - accuracy[2000:3000].min() < 0.05, "a plateau: the mirrored pairs"
    assert 0.55 < accuracy[2000] < 0.85
    generalized = run.first_step("test/accuracy", 0.95)
    assert generalized is not None
    assert 4500 <= generalized <= 8000
    assert purity[0] < 0.3
    assert purity.iloc[-1] > 0.6
