"""What a step costs on this machine, beside loops written by hand: `make bench`.

    python -m benchmarks [--rounds 7] [--steps 12] [--threads N] [--quick] [--only steps interaction growth memory …]

Writes benchmarks/results.md and benchmarks/results.json after each part; with --only the others stay as they are. Times
are medians of steps within a round; ratios are taken round by round, and the contenders of a round follow each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.loops import LOOPS, Problem, blocked
from benchmarks.measure import Contender, Figure, flop_rate, in_turns, loop_times, ratios
from benchmarks.ours import EVERYTHING, NOTHING, step_times
from benchmarks.processes import memory, start_up
from li2_lightning.networks.matmul import product
from li2_lightning.trainer import keep_freed_memory

SIZES = {"M=23, K=256": (23, 256), "M=71, K=2048": (71, 2048), "M=127, K=2048": (127, 2048)}
HERE = Path(__file__).parent
MUON = {"hidden": {"name": "muon", "lr": 0.02}}
Report = dict[str, Any]


def contenders(order: int, width: int, folder: str) -> dict[str, Contender]:
    """Everything that takes turns at one size, Adam first."""
    found: dict[str, Contender] = {}
    for name, loop in LOOPS.items():
        problem = Problem.draw(order, width)
        optimizer = torch.optim.Adam([problem.W, problem.V], lr=1e-3, weight_decay=2e-4)
        found[name] = partial(_loop_steps, loop(problem, optimizer))
    size = {"task": {"order": order}, "network": {"width": width}}
    found["ours, no callbacks"] = lambda steps: step_times(size, NOTHING, steps, folder)
    found["ours, everything"] = lambda steps: step_times(size, EVERYTHING, steps, folder)
    offline = {**size, "logger": {"mode": "offline"}}
    found["ours, everything, W&B offline"] = lambda steps: step_times(offline, EVERYTHING, steps, folder)
    muon = {**size, "optimizer": MUON}
    found["ours, Muon, no callbacks"] = lambda steps: step_times(muon, NOTHING, steps, folder)
    found["ours, Muon, everything"] = lambda steps: step_times(muon, EVERYTHING, steps, folder)
    return found


def _loop_steps(loop: Iterator[None], steps: int) -> list[float]:
    return loop_times(loop, steps)


def measure_steps(rounds: int, steps: int, sizes: dict[str, tuple[int, int]]) -> Report:
    """Step times, their ratios, and the bound that the machine's own product rate sets."""
    report: Report = {}
    for label, (order, width) in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            times = in_turns(contenders(order, width, folder), rounds, steps)
        flops = Problem.draw(order, width).flops
        bounds = {"torch's product": flops / flop_rate(), "the kernel's product": flops / flop_rate(product)}
        everything, bare, loop = (times[name] for name in ("ours, everything", "ours, no callbacks", "blocked loop"))
        report[label] = {
            "milliseconds": {name: Figure.of([1e3 * value for value in values]) for name, values in times.items()},
            "bounds": {name: 1e3 * bound for name, bound in bounds.items()},
            "ratios": {
                "naive loop / ours, everything": ratios(times, "naive loop", "ours, everything"),
                "plain loop / ours, everything": ratios(times, "plain loop", "ours, everything"),
                "ours, everything / blocked loop": ratios(times, "ours, everything", "blocked loop"),
                "ours, everything / no callbacks": ratios(times, "ours, everything", "ours, no callbacks"),
                **{
                    f"ours, everything / the products alone, by {name}": Figure.of(
                        [value / bound for value in everything]
                    )
                    for name, bound in bounds.items()
                },
                "Muon / Adam, no callbacks": ratios(times, "ours, Muon, no callbacks", "ours, no callbacks"),
                "Muon / Adam, everything": ratios(times, "ours, Muon, everything", "ours, everything"),
            },
            "milliseconds over the blocked loop": {
                name: Figure.of([1e3 * (one - other) for one, other in zip(values, loop, strict=True)])
                for name, values in (
                    ("no callbacks", bare),
                    ("everything", everything),
                    ("everything, W&B offline", times["ours, everything, W&B offline"]),
                )
            },
        }
        print(_steps_table(label, report[label]), flush=True)
    return report


def measure_interaction(rounds: int) -> Report:
    """What one measurement of the interaction columns costs, in steps, and as a share at its default cadence of 100."""
    only = {**NOTHING, "interaction": {"enabled": True, "every_n_steps": 1}}
    with tempfile.TemporaryDirectory() as folder:
        times = in_turns(
            {
                "with": lambda steps: step_times({}, only, steps, folder),
                "without": lambda steps: step_times({}, NOTHING, steps, folder),
            },
            rounds,
            3,
        )
    extra = [one / other - 1 for one, other in zip(times["with"], times["without"], strict=True)]
    return {"steps": Figure.of(extra), "percent at every 100": Figure.of(extra)}


def measure_growth(rounds: int, steps: int) -> Report:
    """Exponents of the time of a step in K, in n, and in M with n = .4M², by least squares on logarithms.

    The theory: the products cost K·C·(3n + N − n), so 1 in K; in n with M fixed, less than 1, since the test rows
    become fewer; 3 in M.
    """
    axes: dict[str, list[tuple[float, Problem]]] = {
        "K": [(K, Problem.draw(71, K)) for K in (512, 1024, 2048, 4096)],
        "n": [(n, Problem.draw(71, 2048, n)) for n in (500, 1000, 2000, 4000)],
        "M": [(M, Problem.draw(M, 2048)) for M in (41, 59, 83, 127)],
    }
    report: Report = {}
    for axis, problems in axes.items():
        turns: dict[str, Contender] = {}
        for value, problem in problems:
            optimizer = torch.optim.Adam([problem.W, problem.V], lr=1e-3)
            turns[f"{value:g}"] = partial(_loop_steps, blocked(problem, optimizer))
        times = in_turns(turns, rounds, steps)
        x = [math.log(value) for value, _ in problems]
        report[axis] = {
            "milliseconds": {name: Figure.of([1e3 * second for second in values]) for name, values in times.items()},
            "exponent": Figure.of([_slope(x, [math.log(times[name][r]) for name in turns]) for r in range(rounds)]),
            "of the products": _slope(x, [math.log(problem.flops) for _, problem in problems]),
        }
    return report


def _slope(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure_memory() -> Report:
    """Peak memory above the imports, weights and optimizer state, in activations (n × K)."""
    return {
        f"M={order}, K={width}, n={n}, {'everything' if everything else 'no callbacks'}": memory(
            order, width, n, everything
        )
        for (order, width, n), everything in itertools.product(((71, 2048, 2016), (127, 2048, 8000)), (False, True))
    }


def _steps_table(label: str, report: Report) -> str:
    lines = [f"### {label}", "", "| | ms a step: median (from – to) |", "|---|---|"]
    lines += [f"| {name} | {figure} |" for name, figure in report["milliseconds"].items()]
    lines += [f"| products alone, at the rate of {name} | {bound:.2f} |" for name, bound in report["bounds"].items()]
    lines.append("")
    lines += ["| ratio | median (from – to) |", "|---|---|"]
    lines += [f"| {name} | {figure} |" for name, figure in report["ratios"].items()]
    lines += ["", "| ms a step above the blocked loop | |", "|---|---|"]
    lines += [f"| ours, {name} | {figure} |" for name, figure in report["milliseconds over the blocked loop"].items()]
    return "\n".join([*lines, ""])


def _markdown(report: Report) -> str:
    machine = report["machine"]
    lines = [
        "# What a step costs",
        "",
        f"`make bench` wrote this on {machine['cores']} cores ({machine['processor']}), {machine['threads']} threads, "
        f"torch {machine['torch']}: medians over {machine['rounds']} rounds of {machine['steps']} steps in which the "
        "contenders take turns. Only the ratios carry over to another machine. The loops are in `benchmarks/loops.py`.",
        "",
    ]
    for label, steps in report.get("steps", {}).items():
        lines.append(_steps_table(label, steps))
    if "interaction" in report:
        lines += [
            "### Interaction columns, M=71, K=2048",
            "",
            f"One measurement costs {report['interaction']['steps']} steps without callbacks, so about as many percent "
            "of a run at the default cadence of 100.",
            "",
        ]
    if "growth" in report:
        lines += ["### Growth of the blocked loop", "", "| in | exponent | of the products |", "|---|---|---|"]
        lines += [
            f"| {axis} | {found['exponent']} | {found['of the products']:.2f} |"
            for axis, found in report["growth"].items()
        ]
        lines.append("")
    if "memory" in report:
        lines += [
            "### Peak memory above the imports, the weights and the optimizer state",
            "",
            "| | activations (n × K) |",
            "|---|---|",
        ]
        for label, found in report["memory"].items():
            ring = f", {found['ring']:.2f} of them the last 20 updates" if found["ring"] else ""
            lines.append(f"| {label} | {found['activations']:.2f}{ring} |")
        lines.append("")
    if "start" in report:
        lines += ["### Start", "", "| | seconds, or ratio to the imports alone |", "|---|---|"]
        lines += [f"| {name} | {figure} |" for name, figure in report["start"].items()]
        lines.append("")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Figure) else str(value)


def _figures(value: dict[str, Any]) -> Any:
    return Figure(**value) if value.keys() == {"median", "low", "high"} else value


def main() -> None:
    """Measure what is asked for and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="three rounds, and the default size alone")
    parser.add_argument("--only", nargs="+", choices=["steps", "interaction", "growth", "memory", "start"])
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.md and results.json")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    # The loops have the allocator that our runs have.
    keep_freed_memory()
    rounds = 3 if arguments.quick else arguments.rounds
    sizes = {"M=71, K=2048": SIZES["M=71, K=2048"]} if arguments.quick else SIZES
    parts: dict[str, Callable[[], Report]] = {
        "steps": lambda: measure_steps(rounds, arguments.steps, sizes),
        "interaction": lambda: measure_interaction(rounds),
        "growth": lambda: measure_growth(rounds, arguments.steps),
        "memory": measure_memory,
        "start": lambda: start_up(rounds),
    }
    kept = arguments.output / "results.json"
    report: Report = json.loads(kept.read_text(encoding="utf-8"), object_hook=_figures) if kept.exists() else {}
    report["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "steps": arguments.steps,
    }
    for name, part in parts.items():
        if arguments.only is None or name in arguments.only:
            report[name] = part()
            kept.write_text(json.dumps(report, default=_plain, indent=2) + "\n", encoding="utf-8")
            (arguments.output / "results.md").write_text(_markdown(report), encoding="utf-8")
    print(_markdown(report))


if __name__ == "__main__":
    main()
