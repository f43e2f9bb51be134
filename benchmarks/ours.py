"""Times of the steps of `train.run`, from the start of one batch to the start of the next."""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any, ClassVar

import lightning
import yaml

import train
from callbacks.registry import CALLBACKS, KEEPING, MEASURING
from li2_lightning.config import CONFIGS

# Report and progress are no part of a step, and the interaction columns are measured separately.
EVERYTHING: dict[str, dict[str, Any]] = {
    "progress": {"enabled": False},
    "report": {"enabled": False},
    "interaction": {"enabled": False},
}
NOTHING: dict[str, dict[str, Any]] = {name: {"enabled": False} for name in (*MEASURING, *KEEPING)}


def preset(tier: str) -> dict[str, dict[str, Any]]:
    """The callbacks of a file in ``configs/callbacks/``."""
    values: dict[str, dict[str, Any]] = yaml.safe_load((CONFIGS / "callbacks" / f"{tier}.yaml").read_text("utf-8"))
    return values


@CALLBACKS.register("step_clock")
class StepClock(lightning.Callback):
    """Records the time at which each batch starts."""

    times: ClassVar[list[float]] = []

    def __init__(self, cpu_time: bool = False) -> None:
        self.clock = time.process_time if cpu_time else time.perf_counter

    def on_train_batch_start(self, *args: Any) -> None:
        self.times.append(self.clock())


def step_times(
    values: dict[str, Any], callbacks: dict[str, dict[str, Any]], folder: str, steps: int, cpu_time: bool = False
) -> list[float]:
    """Seconds of each step of a run with these settings; CPU time is that of all threads, whatever else runs."""
    StepClock.times.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        train.run(
            {
                "logger": {"mode": "disabled"},
                **values,
                "max_steps": steps + 1,
                "output_dir": folder,
                "force": True,
                "callbacks": {**callbacks, "step_clock": {"cpu_time": cpu_time}},
            }
        )
    return [after - before for before, after in zip(StepClock.times, StepClock.times[1:], strict=False)]
