"""What the end of a run says of it."""

from __future__ import annotations

from typing import Any

import pytest

from li2_lightning.runs.terminal import verdict


def summary(train: int | None, test: int | None, *final: float) -> dict[str, Any]:
    """The parts of a summary that a verdict reads; the last numbers are the two accuracies at the end."""
    return {
        "status": "finished",
        "first_step": {"train": {"0.99": train}, "test": {"0.99": test}},
        "final": {"train/accuracy": final[0], "test/accuracy": final[1]},
    }


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ((None, None, 0.2, 0.0), "It has not memorized the training rows: training accuracy 0.20 at the end."),
        ((60, None, 1.0, 0.1), "It memorized at step 60 and has not generalized: test accuracy 0.10 at the end."),
        ((17, 140, 1.0, 1.0), "It memorized at step 17 and generalized at step 140."),
        # Weight decay can take back what a run has learned, before or after it generalized.
        ((60, None, 0.2, 0.0), "It memorized at step 60 and lost that again: training accuracy 0.20 at the end."),
        ((17, 140, 0.2, 0.2), "It memorized at step 17 and lost that again: training accuracy 0.20 at the end."),
    ],
)
def test_the_sentence_of_each_outcome(outcome: tuple[Any, ...], sentence: str) -> None:
    assert verdict(summary(*outcome)) == sentence
