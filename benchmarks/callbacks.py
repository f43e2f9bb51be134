"""What the callbacks cost: the default run with all of them against the same training without any.

    python -m benchmarks.callbacks [--rounds 5] [--steps 40] [--threads N]

Rounds alternate, so that a machine that changes its speed changes it for both. A step is timed from one batch to the
next; the median over the steps of a round is its figure, and the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any, ClassVar

import lightning
import torch

import train
from callbacks.registry import CALLBACKS, KEEPING, MEASURING


@CALLBACKS.register("step_clock")
class StepClock(lightning.Callback):
    """Notes the time at which each batch starts."""

    times: ClassVar[list[float]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.times.append(time.perf_counter())


def median_step(callbacks: dict[str, dict[str, Any]], steps: int, threads: int | None, folder: str) -> float:
    """Median seconds of a step of the default run with these callback options."""
    StepClock.times.clear()
    train.run(
        {
            "max_steps": steps,
            "output_dir": folder,
            "force": True,
            "logger": {"mode": "disabled"},
            "trainer": {"threads": threads},
            "callbacks": {**callbacks, "step_clock": {}},
        }
    )
    return statistics.median(
        after - before for before, after in zip(StepClock.times, StepClock.times[1:], strict=False)
    )


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    # What happens once a run is no part of a step; the report is drawn at its end.
    everything = {"progress": {"enabled": False}, "report": {"enabled": False}}
    nothing = {name: {"enabled": False} for name in (*MEASURING, *KEEPING)}
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            pairs.append(
                [median_step(options, arguments.steps, arguments.threads, folder) for options in (everything, nothing)]
            )
    ratios = [with_all / without for with_all, without in pairs]
    print(f"\n{arguments.rounds} rounds of {arguments.steps} steps, {torch.get_num_threads()} threads, K=2048, M=71")
    print(f"step with every callback  {1e3 * statistics.median(pair[0] for pair in pairs):7.1f} ms (median)")
    print(f"step without callbacks    {1e3 * statistics.median(pair[1] for pair in pairs):7.1f} ms (median)")
    print(f"ratio                     {statistics.median(ratios):7.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
