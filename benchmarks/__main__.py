"""The cost of a step on this machine, compared with loops written by hand: `make bench`.

    python -m benchmarks [--rounds 7] [--steps 12] [--threads N] [--quick] [--only steps tiers interaction …]

Writes benchmarks/results.md and benchmarks/results.json after each part. Both have a section for each kind of
processor; a section keeps the parts that are not measured, and the other sections stay as they are. The variables in
`LIMITS` keep a processor from its wider instructions, as one without them; such a section says that it is emulated.
The time of a contender in a round is the median over its steps. Ratios are computed within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch

from benchmarks.loops import LOOPS, Problem, blocked
from benchmarks.measure import Contender, Figure, flop_rate, in_turns, loop_times, ratios
from benchmarks.ours import EVERYTHING, NOTHING, preset, step_times
from benchmarks.processes import memory, start_up, whole_command
from benchmarks.stacks import measure_stacks
from li2_lightning.networks.libraries import processor
from li2_lightning.networks.matmul import product
from li2_lightning.trainer import keep_freed_memory

SIZES = {"M=23, K=256": (23, 256), "M=71, K=2048": (71, 2048), "M=127, K=2048": (127, 2048)}
TIERS = {
    "minimal": preset("minimal"),
    "default without pictures": {**preset("default"), "pictures": {"enabled": False}},
    "default": preset("default"),
    "full": preset("full"),
}
TIER_SIZES = ("M=23, K=256", "M=71, K=2048")
# One period of every cadence.
TIER_STEPS = 200
PARTS = ("steps", "stack", "tiers", "interaction", "growth", "memory", "start", "command")
HERE = Path(__file__).parent
# Environment variables that choose the instructions of torch, oneDNN and MKL.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
MUON = {"hidden": {"name": "muon", "lr": 0.02}}
Report = dict[str, Any]


def contenders(order: int, width: int, folder: str) -> dict[str, Contender]:
    """Every contender at one size: the loops by hand with Adam, then `train.run` with Adam and with Muon."""
    found: dict[str, Contender] = {}
    for name, loop in LOOPS.items():
        problem = Problem.draw(order, width)
        optimizer = torch.optim.Adam([problem.W, problem.V], lr=1e-3, weight_decay=2e-4)
        found[name] = partial(loop_times, loop(problem, optimizer))
    size = {"task": {"order": order}, "network": {"width": width}}
    offline, muon = {**size, "logger": {"mode": "offline"}}, {**size, "optimizer": MUON}
    for name, values, callbacks in (
        ("ours, no callbacks", size, NOTHING),
        ("ours, everything", size, EVERYTHING),
        ("ours, everything, W&B offline", offline, EVERYTHING),
        ("ours, Muon, no callbacks", muon, NOTHING),
        ("ours, Muon, everything", muon, EVERYTHING),
    ):
        found[name] = partial(step_times, values, callbacks, folder)
    return found


def measure_steps(rounds: int, steps: int, sizes: dict[str, tuple[int, int]]) -> Report:
    """Times of a step, their ratios, and the time of the matrix products alone at the rate of this machine."""
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
    """The cost of one measurement of the interaction columns, in steps; at every 100 steps, in percent of a run."""
    only = {**NOTHING, "interaction": {"enabled": True, "every_n_steps": 1}}
    with tempfile.TemporaryDirectory() as folder:
        turns = {"with": partial(step_times, {}, only, folder), "without": partial(step_times, {}, NOTHING, folder)}
        times = in_turns(turns, rounds, 3)
    extra = [one / other - 1 for one, other in zip(times["with"], times["without"], strict=True)]
    return {"steps": Figure.of(extra), "percent at every 100": Figure.of(extra)}


def measure_tiers(rounds: int, steps: int, sizes: dict[str, tuple[int, int]]) -> Report:
    """What the presets of measurements cost, in percent of the CPU time of all steps with callbacks=minimal."""
    report: Report = {}
    for label, (order, width) in sizes.items():
        values = {"task": {"order": order}, "network": {"width": width}}
        with tempfile.TemporaryDirectory() as folder:
            quiet = {"progress": {"enabled": False}, "report": {"enabled": False}}
            turns: dict[str, Contender] = {
                tier: partial(step_times, values, {**callbacks, **quiet}, folder, cpu_time=True)
                for tier, callbacks in TIERS.items()
            }
            times = in_turns(turns, rounds, steps, statistics.fmean)
        report[label] = {
            tier: Figure.of([100 * (one / other - 1) for one, other in zip(times[tier], times["minimal"], strict=True)])
            for tier in TIERS
        }
    return report


def measure_growth(rounds: int, steps: int) -> Report:
    """Exponents of the time of a step in K, in n, and in M with n = .4M², by least squares on logarithms.

    The products cost K·M·(3n + N − n). Their exponent is 1 in K and 3 in M. In n, with M fixed, it is less than 1,
    because more training rows are fewer test rows.
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
            turns[f"{value:g}"] = partial(loop_times, blocked(problem, optimizer))
        times = in_turns(turns, rounds, steps)
        x = [math.log(value) for value, _ in problems]
        report[axis] = {
            "milliseconds": {name: Figure.of([1e3 * second for second in values]) for name, values in times.items()},
            "exponent": Figure.of(
                [linear_regression(x, [math.log(times[name][r]) for name in turns]).slope for r in range(rounds)]
            ),
            "of the products": linear_regression(x, [math.log(problem.flops) for _, problem in problems]).slope,
        }
    return report


def measure_memory() -> Report:
    """Peak memory beyond imports, weights and optimizer state, in units of one activation (n × K)."""
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


def machine() -> str:
    """The name of this processor and its instructions, the title of a section of the results."""
    capability = torch.backends.cpu.get_cpu_capability()
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return f"{processor()}, {capability}" + (f" emulated by {' '.join(limits)}" if limits else "")


def _document(reports: dict[str, Report]) -> str:
    lines = [
        "# What a step costs",
        "",
        "`make bench` writes the section of the processor that it runs on: medians over rounds in which the contenders "
        "take turns. Only the ratios carry over to another machine. The loops are in `benchmarks/loops.py`.",
        "",
    ]
    for title, report in reports.items():
        lines += [f"## {title}", ""]
        settings: dict[str, list[str]] = {}
        for part, setting in report["settings"].items():
            settings.setdefault(setting, []).append(part)
        lines += [*(f"{', '.join(parts)}: {setting}." for setting, parts in settings.items()), "", _markdown(report)]
    return "\n".join(lines)


def _markdown(report: Report) -> str:
    lines: list[str] = []
    for label, steps in report.get("steps", {}).items():
        lines.append(_steps_table(label, steps))
    for threads, sizes in report.get("stack", {}).items():
        lines += [f"### Runs that are trained together, every default column on, {threads}", ""]
        for label, found in sizes.items():
            lines += [f"{label}:", "", "| | ms a step and run | times less than one after the other |", "|---|---|---|"]
            lines += [
                f"| {name} | {figure} | {found['times less'].get(name, '')} |"
                for name, figure in found["milliseconds"].items()
            ]
            lines += [f"| {name} | {size:.0f} MB a run | |" for name, size in found["megabytes a run"].items()]
            lines.append("")
    if "interaction" in report:
        lines += [
            "### Interaction columns, M=71, K=2048",
            "",
            f"One measurement costs {report['interaction']['steps']} steps without callbacks, so about as many percent "
            "of a run at the default cadence of 100.",
            "",
        ]
    if "tiers" in report:
        lines += ["### Tiers of measurement: percent of CPU time over callbacks=minimal", ""]
        lines += ["| | " + " | ".join(TIERS) + " |", "|---" * (len(TIERS) + 1) + "|"]
        lines += [
            f"| {label} | " + " | ".join(str(figure) for figure in found.values()) + " |"
            for label, found in report["tiers"].items()
        ]
        lines.append("")
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
    if "command" in report:
        lines += ["### The default command, from the shell, W&B offline", "", "| | seconds |", "|---|---|"]
        lines += [f"| {name} | {figure} |" for name, figure in report["command"].items()]
        lines.append("")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Figure) else str(value)


def _figures(value: dict[str, Any]) -> Any:
    return Figure(**value) if value.keys() == {"median", "low", "high"} else value


def main() -> None:
    """Measure the chosen parts and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="three rounds, and the default size alone")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.md and results.json")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    # The loops by hand must use the same allocator settings as our runs.
    keep_freed_memory()
    rounds = 3 if arguments.quick else arguments.rounds
    sizes = {"M=71, K=2048": SIZES["M=71, K=2048"]} if arguments.quick else SIZES
    parts: dict[str, Callable[[], Report]] = {
        "steps": lambda: measure_steps(rounds, arguments.steps, sizes),
        "stack": lambda: {f"{n} thread{'s' * (n > 1)}": measure_stacks(rounds, n) for n in (1, 2)},
        "tiers": lambda: measure_tiers(rounds, TIER_STEPS, {name: SIZES[name] for name in TIER_SIZES}),
        "interaction": lambda: measure_interaction(rounds),
        "growth": lambda: measure_growth(rounds, arguments.steps),
        "memory": measure_memory,
        "start": lambda: start_up(rounds),
        "command": lambda: whole_command(rounds),
    }
    kept, title = arguments.output / "results.json", machine()
    reports: dict[str, Report] = (
        json.loads(kept.read_text(encoding="utf-8"), object_hook=_figures) if kept.exists() else {}
    )
    report = reports.setdefault(title, {"settings": {}})
    threads = torch.get_num_threads()
    setting = f"{rounds} rounds, {threads} threads, {os.cpu_count()} cores, torch {torch.__version__}"
    for name, part in parts.items():
        if arguments.only is None or name in arguments.only:
            torch.set_num_threads(threads)
            report[name], report["settings"][name] = part(), setting
            kept.write_text(json.dumps(reports, default=_plain, indent=2) + "\n", encoding="utf-8")
            (arguments.output / "results.md").write_text(_document(reports), encoding="utf-8")
    print(f"## {title}\n\n{_markdown(report)}")


if __name__ == "__main__":
    main()
