"""What a step costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD

import callbacks.cost

NUMBER = 8  # bytes, in float64


class Slow(SGD):
    """An update that takes 20 ms."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)

    def step(self, closure: Any = None) -> Any:
        time.sleep(0.02)
        return super().step(closure)


def cost_of(tiny_run: Callable[..., Any], *overrides: str) -> dict[str, Any]:
    directory = tiny_run("callbacks.cost.enabled=true", "callbacks.checkpoint.enabled=false", *overrides).directory
    return json.loads((directory / "cost.json").read_text())


@pytest.mark.parametrize(
    ("optimizer", "times"),
    [("name=adam", 2), ("name=sgd", 0), ("name=muon", 1), ("name=slow_gradients", 3), ("name=orthogonal_gradient", 2)],
)
def test_memory_by_hand(tiny_run: Callable[..., Any], optimizer: str, times: int) -> None:
    """W is 14 × 16 and V 16 × 7; Adam holds two averages, and a number that counts the steps."""
    cost = cost_of(tiny_run, f"optimizer.hidden.{optimizer}", "optimizer.output.name=sgd")
    assert cost["parameter_bytes"] == (14 * 16 + 16 * 7) * NUMBER
    assert cost["optimizer_state_bytes"] == pytest.approx(times * 14 * 16 * NUMBER, abs=2 * NUMBER)


def test_the_time_of_an_update_is_told_from_that_of_the_step(tiny_run: Callable[..., Any]) -> None:
    """No timing of ours is tested, only that a pause lands where it was."""
    slow = cost_of(tiny_run, f"optimizer.hidden.name={__name__}:Slow")
    assert 0.02 < slow["seconds_per_update"] < slow["seconds_per_step"]
    assert slow["steps"] == 10 - 1 - callbacks.cost.WARM_UP


def test_too_short_a_run_has_no_median(tiny_run: Callable[..., Any]) -> None:
    cost = cost_of(tiny_run, "max_steps=3")
    assert (cost["seconds_per_step"], cost["seconds_per_update"], cost["steps"]) == (None, None, 0)


def test_it_is_off_unless_named(tiny_run: Callable[..., Any]) -> None:
    assert not (tiny_run("max_steps=2").directory / "cost.json").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_clock_waits_for_the_device() -> None:
    before = callbacks.cost._clock(torch.device("cuda"))
    assert callbacks.cost._clock(torch.device("cuda")) > before
