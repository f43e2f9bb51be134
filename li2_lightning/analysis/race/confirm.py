"""The best setting of each entrant on fresh seeds, over several workloads."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from li2_lightning.analysis.race.entrants import LEVEL, describe_setting, entrants
from li2_lightning.analysis.race.results import Results
from li2_lightning.config import CONFIGS
from li2_lightning.errors import InputError, unknown
from li2_lightning.runs.load import Run, load_run

# Sections of a tuned run that its confirmation keeps; the others are the workload's, or the default.
KEPT = ("optimizer", "scheduler", "callbacks", "trainer", "logger", "stack")
FEWEST_SEEDS = 2


def workload_names() -> list[str]:
    """The workloads of configs/workload."""
    return sorted(path.stem for path in CONFIGS.glob("workload/*.yaml"))


def read_workloads(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings of each workload: its task, data, network, loss and number of steps.

    Raises:
        InputError: an unknown name.
    """
    found = {}
    for name in names:
        if name not in workload_names():
            raise unknown("workload", name, workload_names())
        settings = OmegaConf.to_container(OmegaConf.load(CONFIGS / "workload" / f"{name}.yaml"))
        assert isinstance(settings, dict)
        found[name] = {str(key): value for key, value in settings.items()}
    return found


def fresh_seeds(runs: Sequence[Run], count: int) -> range:
    """``count`` seeds from the first multiple of 100 above every seed of ``runs``.

    Raises:
        InputError: fewer than `FEWEST_SEEDS`, of which there is no interval.
    """
    if count < FEWEST_SEEDS:
        raise InputError(f"--confirm={count} are too few seeds for an interval; give at least {FEWEST_SEEDS}.")
    first = 100 * (1 + max(int(run["seed"]) for run in runs) // 100)
    return range(first, first + count)


def confirm(runs: Sequence[Run], count: int, names: Sequence[str]) -> Results:
    """Train the best setting of each entrant on fresh seeds and read the results; finished runs are not repeated.

    The runs are a sweep: stacks, directories and continuation are those of ``li2 train -m``. They lie beside the tuned
    runs, in a folder of the same name with ``_confirm`` appended. An entrant without a setting that reached test
    accuracy .99 is left out. A run that diverges has not arrived.

    Args:
        runs: the tuning.
        count: the number of seeds.
        names: the workloads.

    Raises:
        InputError: as for `entrants`, `read_workloads` and `fresh_seeds`; no entrant arrived; a run has not ended.
        SystemExit: a signal stopped the sweep.
    """
    workloads, seeds = read_workloads(names), fresh_seeds(runs, count)
    field = [entrant for entrant in entrants(runs) if entrant.best.reached]
    if not field:
        raise InputError(f"No run reached test accuracy {LEVEL:g}, so no setting is the best.")
    labels = {
        (entrant.label, name, seed): f"{entrant.label}, {name}, seed {seed}"
        for name in workloads
        for entrant in field
        for seed in seeds
    }
    tuned = {entrant.label: entrant.best.runs[0] for entrant in field}
    # train.py stands above this package, so a command names it as a string (`li2_lightning.cli.main`).
    directories = importlib.import_module("train").sweep(
        {label: _config(tuned[entrant], workloads[name], seed) for (entrant, name, seed), label in labels.items()}
    )
    steps = {run: _arrival(label, directories[label]) for run, label in labels.items()}
    return Results(
        [entrant.label for entrant in field],
        [describe_setting(entrant.best.values, entrant.edges()) for entrant in field],
        list(workloads),
        [int(workload["max_steps"]) for workload in workloads.values()],
        list(seeds),
        np.array([[[steps[e.label, name, seed] for seed in seeds] for name in workloads] for e in field]),
    )


def _config(tuned: Run, workload: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The values of a run with the optimizer of ``tuned``."""
    name = f"{tuned.directory.parent.name}_confirm"
    config = {key: tuned.config[key] for key in KEPT}
    return {
        **config,
        **workload,
        "seed": seed,
        "name": name,
        "output_dir": str(tuned.directory.parents[1]),
        "stop_at_test_accuracy": LEVEL,
        # Thousands of small runs: the rows are enough.
        "callbacks": {**config["callbacks"], "checkpoint": {"enabled": False}},
        "logger": {**config["logger"], "group": name},
    }


def _arrival(label: str, directory: Path) -> float:
    """The first step with test accuracy .99; ∞ for a run that ended without."""
    run = load_run(directory) if directory.is_dir() else None
    if run is None or run.summary is None:
        raise InputError(f"The run of {label} has not ended, see above; the same command tries it again.")
    step = run.first_step("test/accuracy", LEVEL)
    return np.inf if step is None else float(step)
