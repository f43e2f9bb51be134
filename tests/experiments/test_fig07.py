"""Fig. 7: with few samples the learning rate decides between Fourier features and memorizing ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.experiments.conftest import Sweep


@pytest.mark.slow
def test_a_small_rate_finds_fourier_features_and_a_large_one_memorizes(sweep: Callable[[str], Sweep]) -> None:
    """Both fit the training rows; no claim about E, which is not higher with the large rate here."""
    table = sweep("fig07_small_data_quick").table
    small, large = (table[table["optimizer.lr"] == rate] for rate in (2e-3, 2e-1))
    assert len(small) == len(large) == 3
    assert small["outcome/final/test/accuracy"].min() > 0.9
    assert large["outcome/final/test/accuracy"].max() < 0.2
    assert table["outcome/final/train/accuracy"].min() > 0.95
    assert small["outcome/final/features/purity"].mean() > large["outcome/final/features/purity"].mean()
    assert small["outcome/final/features/coverage"].min() == 11
