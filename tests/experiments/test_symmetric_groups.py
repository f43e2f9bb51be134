"""Composition of permutations is learned, by weight decay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.experiments.conftest import Sweep

pytestmark = pytest.mark.slow

REACHED = "outcome/first_step/test/0.9"


def test_permutations_of_four_are_learned_with_weight_decay_only(sweep: Callable[[str], Sweep]) -> None:
    """Every seed: memorized first, test accuracy .9 later; the control without decay memorizes and stays."""
    table = sweep("symmetric_groups_quick").table
    with_decay, without = (table[(table["optimizer.weight_decay"] > 0) == decays] for decays in (True, False))
    assert len(with_decay) == len(without) == 3
    assert (table["outcome/final/train/accuracy"] == 1).all()
    assert with_decay[REACHED].notna().all()
    assert (with_decay[REACHED] > 3 * with_decay["outcome/first_step/train/0.99"]).all(), "grokking"
    assert without["outcome/max/test/accuracy"].max() < 0.5
