"""Presets run as a user runs them: ``python train.py -m experiment=NAME``, then the table of what came out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from li2_lightning.collect import table
from li2_lightning.runs import Run, find_runs

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sweep:
    """What a preset left: its runs, and the table that ``li2_lightning.collect`` makes of them, in the same order."""

    runs: list[Run]
    table: pd.DataFrame


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sweep]:
    """Run a preset whole, once a session, and collect it; every run must have come to its end."""
    done: dict[str, Sweep] = {}

    def run(name: str) -> Sweep:
        if name not in done:
            folder = tmp_path_factory.mktemp(name, numbered=False)
            command = ["-m", f"experiment={name}", "trainer.threads=1", "logger.mode=disabled"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), *command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ended.returncode == 0, ended.stderr
            runs = find_runs([folder / "outputs" / name])
            collected = table(runs)
            assert (collected["outcome/status"] == "finished").all()
            done[name] = Sweep(runs, collected)
        return done[name]

    return run
