"""Presets run as a user runs them: ``python train.py -m experiment=NAME``, then the table of what came out.

Where ``LI2_SWEEPS`` names a folder, sweeps run in it and stay there, and those that are finished in it are not
repeated. ``make figures ARGS="trainer.threads=1 logger.mode=disabled"`` leaves such sweeps, so that ``LI2_SWEEPS=.``
tests the claims on the very runs that were drawn.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from li2_lightning.analysis.collect import table
from li2_lightning.runs.load import Run, find_runs

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sweep:
    """What a preset left: its runs, and the table that ``li2_lightning.collect`` makes of them, in the same order."""

    runs: list[Run]
    table: pd.DataFrame


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Sweep]:
    """Run a preset once a session, whole or with overrides, and collect it.

    Every run must have come to its end; with ``diverging=True`` some may have diverged, as a grid that reaches far
    enough has settings that do.
    """
    done: dict[str, Sweep] = {}

    def run(name: str, *overrides: str, diverging: bool = False) -> Sweep:
        if name not in done:
            kept = os.environ.get("LI2_SWEEPS")
            folder = Path(kept).resolve() if kept else tmp_path_factory.mktemp(name, numbered=False)
            command = ["-m", f"experiment={name}", *overrides, "trainer.threads=1", "logger.mode=disabled"]
            ended = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), *command],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert ended.returncode in (0, 1), ended.stderr[-2000:]
            runs = find_runs([folder / "outputs" / name])
            collected = table(runs)
            states = set(collected["outcome/status"])
            assert states <= ({"finished", "diverged"} if diverging else {"finished"}), ended.stderr[-2000:]
            assert ended.returncode == ("diverged" in states), ended.stderr[-2000:]
            done[name] = Sweep(runs, collected)
        return done[name]

    return run
