"""The boundary of Theorem 4 as the source's experiments draw it."""

from __future__ import annotations

import pytest

from li2_lightning.theory.sampling import critical_fraction


@pytest.mark.parametrize(("order", "fraction"), [(7, 0.763964), (23, 0.374651), (71, 0.164996), (127, 0.104825)])
def test_the_fraction_of_cyclic_groups(order: int, fraction: float) -> None:
    """2.7482·ln M/M to six digits, worked out apart from the code."""
    assert critical_fraction(order, 1) == pytest.approx(fraction, abs=1e-6)


def test_it_grows_with_half_the_largest_irrep_dimension_and_never_falls_below_the_abelian_one() -> None:
    assert critical_fraction(60, 5) == pytest.approx(2.5 * critical_fraction(60, 1), rel=1e-12)
    assert critical_fraction(24, 2) == critical_fraction(24, 1)
    assert critical_fraction(6, 3) > 1
