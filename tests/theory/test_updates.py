"""The eigengap of a Gram matrix of updates."""

from __future__ import annotations

import pytest
import torch

from li2_lightning.theory.updates import WINDOW, eigengap


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
