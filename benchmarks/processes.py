"""Measurements in fresh processes: peak memory, the time to the first step, and the parts of the whole command.

python -m benchmarks.processes memory ORDER WIDTH TRAIN_SIZE EVERYTHING    prints memory as JSON
python -m benchmarks.processes first_step [KEY=VALUE…]                     exits at the first batch
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure

ROOT = Path(__file__).parents[1]


def memory(order: int, width: int, train_size: int, everything: bool) -> dict[str, float]:
    """Peak resident memory of 25 steps in a fresh process, in units of one activation (n × K)."""
    arguments = ["memory", str(order), str(width), str(train_size), str(int(everything))]
    found: dict[str, float] = json.loads(_run("-m", "benchmarks.processes", *arguments).splitlines()[-1])
    return found


def start_up(repetitions: int) -> dict[str, Figure]:
    """Seconds to import torch and lightning, and seconds until the first batch of `train.py`."""
    commands = {
        "import torch, lightning": ("-c", "import torch, lightning"),
        "train.py to the first step": ("-m", "benchmarks.processes", "first_step", "logger.mode=disabled"),
        "train.py to the first step, W&B offline": ("-m", "benchmarks.processes", "first_step", "logger.mode=offline"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repetitions):
        for name, command in commands.items():
            start = time.perf_counter()
            _run(*command)
            seconds[name].append(time.perf_counter() - start)
    base = seconds["import torch, lightning"]
    figures = {name: Figure.of(values) for name, values in seconds.items()}
    for name, values in list(seconds.items())[1:]:
        figures[f"{name}, ratio"] = Figure.of([one / other for one, other in zip(values, base, strict=True)])
    return figures


def whole_command(repetitions: int) -> dict[str, Figure]:
    """The default command as a user calls it, with W&B offline: its seconds by part, and the size of its directory.

    ``exit`` is the part that no run can measure itself: Python's beginning and end.
    """
    found: dict[str, list[float]] = {}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            _run(str(ROOT / "train.py"), "logger.mode=offline", folder=folder)
            whole = time.perf_counter() - start
            directory = (Path(folder) / "outputs" / "latest").resolve()
            summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
            # last.ckpt is another name of a file that is counted.
            files = {path.stat().st_ino: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
        seconds = summary["seconds"]
        needed = seconds["start"] + seconds["steps"] + seconds["rows"]
        values = {
            "whole command": whole,
            **seconds,
            "exit": whole - summary["wall_time_s"],
            "whole command / (start + steps + rows)": whole / needed,
            "directory, MB": sum(files.values()) / 1e6,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: Figure.of(values) for name, values in found.items()}


def _run(*arguments: str, folder: str | None = None) -> str:
    """stdout of Python with these arguments, in ``folder`` or in an empty one."""
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder or empty,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    if done.returncode:
        raise RuntimeError(f"{arguments} failed with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _print_memory(order: int, width: int, train_size: int, everything: bool) -> None:
    from benchmarks.ours import EVERYTHING, NOTHING, step_times

    # A first small run allocates what the libraries need once, at any size.
    small = {"task": {"order": 7}, "network": {"width": 8}, "data": {"train_size": 20}}
    callbacks = EVERYTHING if everything else NOTHING
    values = {"task": {"order": order}, "network": {"width": width}, "data": {"train_size": train_size}}
    with tempfile.TemporaryDirectory() as folder:
        step_times(small, callbacks, folder, 3)
        before = peak()
        # The ring of updates is full after 20 steps.
        step_times(values, callbacks, folder, 25)
    highest = peak() - before
    activation, parameters = 4 * train_size * width, 4 * 3 * order * width
    # Adam: weights, gradients and two moments. A callback stores the last 20 updates of W in the ring.
    state, ring = 4 * parameters, 20 * 4 * 2 * order * width if everything else 0
    found = {"peak": highest, "state": state, "activations": (highest - state) / activation, "ring": ring / activation}
    print(json.dumps(found))


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux the peak of getrusage includes that of the parent process.
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _first_step() -> None:
    import runpy

    import lightning

    from callbacks.registry import CALLBACKS

    @CALLBACKS.register("leave")
    class Leave(lightning.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            os._exit(0)

    sys.argv = ["train.py", *sys.argv[2:], "callbacks.leave.enabled=true"]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        order, width, train_size, everything = map(int, sys.argv[2:])
        _print_memory(order, width, train_size, bool(everything))
    else:
        _first_step()
        raise SystemExit("The run ended before its first step.")
