"""The eigengap of a Gram matrix of updates."""

from __future__ import annotations

import pytest
import torch

from li2_lightning.theory.updates import SLOPE_OVER, WINDOW, eigengap, eigengap_slope, lock_in_step


def test_the_eigengap_is_the_squared_ratio_of_singular_values() -> None:
    """Eigenvalues of the Gram matrix, not singular values of the updates, whose ratio is the root."""
    updates = torch.randn(WINDOW, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(updates)
    assert eigengap(updates @ updates.T).item() == pytest.approx((singular[1] / singular[2]).item() ** 2, rel=1e-10)


def test_the_eigengap_takes_batches_and_is_undefined_for_updates_in_a_plane() -> None:
    grams = torch.diag_embed(torch.tensor([[1.0, 8.0, 2.0, 9.0], [0.0, 0.0, 3.0, 1.0]], dtype=torch.float64))
    first, second = eigengap(grams)
    assert first.item() == pytest.approx(4)
    assert second.isnan()


def ratio_that_grows(slope: float, start: int, steps: int = 200) -> torch.Tensor:
    """Undefined for 20 rows, then 5, then growing by ``slope`` in the logarithm from row ``start`` on."""
    rows = torch.arange(steps, dtype=torch.float64)
    ratio = 5 * (slope * (rows - start).clamp_min(0)).exp()
    ratio[:WINDOW] = torch.nan
    return ratio


def test_the_slope_is_that_of_the_logarithm_over_25_steps() -> None:
    slope = eigengap_slope(ratio_that_grows(0.05, start=120))
    assert slope[: WINDOW + SLOPE_OVER].isnan().all()
    torch.testing.assert_close(slope[[120, 130, 145, 199]], torch.tensor([0, 0.02, 0.05, 0.05], dtype=torch.float64))


@pytest.mark.parametrize(("slope", "fires"), [(0.051, 140), (0.041, 145), (0.039, None), (0.0, None), (-0.1, None)])
def test_lock_in_fires_where_the_slope_passes_its_threshold(slope: float, fires: int | None) -> None:
    """Of 25 steps k have slope .051: the mean .051·k/25 is above .04 from k = 20 on."""
    assert lock_in_step(ratio_that_grows(slope, start=120)) == fires


def test_growth_before_step_100_does_not_count_but_growth_through_it_does() -> None:
    ratio = ratio_that_grows(0.06, start=30)
    assert lock_in_step(ratio) == 100
    ratio[60:] = ratio[60]
    assert lock_in_step(ratio) is None


def test_a_run_shorter_than_the_window_never_fires() -> None:
    assert lock_in_step(ratio_that_grows(0.06, start=0, steps=20)) is None
    assert lock_in_step(ratio_that_grows(0.06, start=0, steps=100)) is None
