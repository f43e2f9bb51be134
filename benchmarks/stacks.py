"""Steps of runs that are trained together, beside runs one after the other and a batched loop written by hand."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import train
from benchmarks.loops import Problem
from benchmarks.measure import Contender, Figure, in_turns, loop_times, ratios
from benchmarks.ours import EVERYTHING, StepClock, step_times
from benchmarks.processes import peak

SIZES = {"M=31, K=64": (31, 64), "M=23, K=256": (23, 256), "M=71, K=512": (71, 512), "M=71, K=2048": (71, 2048)}
RUNS = (1, 4, 16, 32)
# Of runs that are trained together at the largest size; a step of 32 takes seconds.
MOST_FLOPS = 2e10
ALONE = "one after the other"


def batched(problems: list[Problem]) -> Iterator[None]:
    """The training step of several runs with a leading axis, and nothing else: no evaluation and no columns."""
    first = problems[0]
    runs, order, width = len(problems), first.order, first.V.shape[0]
    W = torch.stack([p.W.detach() for p in problems]).requires_grad_()
    V = torch.stack([p.V.detach() for p in problems]).requires_grad_()
    offsets = torch.tensor([0, order]) + 2 * order * torch.arange(runs)[:, None, None]
    index = (torch.stack([p.tokens[p.train] for p in problems]) + offsets).flatten(0, 1)
    targets = functional.one_hot(torch.stack([p.labels[p.train] for p in problems]), order).to(W.dtype) - 1 / order
    optimizer = torch.optim.Adam([W, V], lr=1e-3, weight_decay=2e-4, fused=True)
    while True:
        optimizer.zero_grad()
        z = functional.embedding_bag(index, W.flatten(0, 1), mode="sum").view(runs, -1, width)
        outputs = z.square() @ V
        difference: Tensor = outputs - outputs.mean(dim=-1, keepdim=True) - targets
        difference.square().sum(dim=-1).mean(dim=-1).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield


def stack_times(order: int, width: int, runs: int, steps: int) -> list[float]:
    """Seconds of each step of a stack of runs that differ in their seeds, every default column on."""
    StepClock.times.clear()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        values: dict[str, Any] = {
            "task": {"order": order},
            "network": {"width": width},
            "logger": {"mode": "disabled"},
            "max_steps": steps + 1,
            "output_dir": folder,
            "trainer": {"threads": torch.get_num_threads()},
            "callbacks": {**EVERYTHING, "step_clock": {}},
        }
        outcomes = train.run_stack([train.read_config({**values, "seed": seed}) for seed in range(runs)])
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    starts = StepClock.times[::runs]
    return [after - before for before, after in pairwise(starts)]


def _alone(order: int, width: int, steps: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "task": {"order": order},
            "network": {"width": width},
            "trainer": {"threads": torch.get_num_threads()},
        }
        return step_times(values, EVERYTHING, folder, steps)


def measure_stacks(rounds: int, threads: int) -> dict[str, Any]:
    """Milliseconds of a step of one run, and how many times less that is than one after the other."""
    torch.set_num_threads(threads)
    report: dict[str, Any] = {}
    for label, (order, width) in SIZES.items():
        problems = [Problem.draw(order, width) for _ in range(max(RUNS))]
        sizes = [runs for runs in RUNS if runs * problems[0].flops <= MOST_FLOPS]
        turns: dict[str, Contender] = {ALONE: partial(_alone, order, width)}
        for runs in sizes:
            turns[f"stack of {runs}"] = partial(stack_times, order, width, runs)
            turns[f"batched loop of {runs}"] = partial(loop_times, batched(problems[:runs]))
        steps = 30 if problems[0].flops < 2e8 else 5
        times = in_turns(turns, rounds, steps)
        for runs in sizes:
            for name in (f"stack of {runs}", f"batched loop of {runs}"):
                times[name] = [seconds / runs for seconds in times[name]]
        report[label] = {
            "milliseconds": {name: Figure.of([1e3 * s for s in seconds]) for name, seconds in times.items()},
            "times less": {f"stack of {runs}": ratios(times, ALONE, f"stack of {runs}") for runs in sizes},
            "megabytes a run": {f"stack of {runs}": _megabytes(order, width, runs) for runs in sizes[-1:]},
        }
    return report


def _megabytes(order: int, width: int, runs: int) -> float:
    """Peak memory of a process with a stack above that of a process with one run, for each further run."""
    if runs == 1:
        return 0.0

    def peak_of(count: int) -> float:
        command = [sys.executable, "-m", "benchmarks.stacks", json.dumps([order, width, count])]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    return (peak_of(runs) - peak_of(1)) / (runs - 1) / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    stack_times(*json.loads(sys.argv[1]), steps=3)
    print(peak())
