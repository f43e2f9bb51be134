"""Many short runs in a row, in one process: what a run takes, it gives back."""

from __future__ import annotations

import gc
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from li2_lightning.errors import DivergenceError

# The hour-long version: LI2_SOAK_MINUTES=60 python -m pytest -m slow tests/test_soak.py
MINUTES = float(os.environ.get("LI2_SOAK_MINUTES", "2"))
STATM = Path("/proc/self/statm")
# What an allocator and the caches of the libraries may still take once everything was used a few times. A leak of one
# set of weights a run, 30 kB here, goes beyond it within five minutes.
TOLERANCE_MB = 8.0

KINDS: list[dict[str, Any]] = [
    {},
    {"optimizer": {"hidden": {"name": "muon"}}},
    {"data": {"batch_size": 16, "evaluate_every_n_steps": 4}, "scheduler": {"name": "cosine"}},
    {"network": {"width": 32, "batch_norm": True, "hidden_layers": 1}, "loss": "cross_entropy"},
    {"network": {"width": 32, "complex_weights": True, "readout": "ridge"}},
    {"callbacks": {"report": {"enabled": True}, "pictures": {"enabled": True}}, "logger": {"mode": "offline"}},
    {"optimizer": {"lr": 1e20}},
]


def resident_megabytes() -> float:
    """What of this process is in memory now."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def one_run(number: int, folder: Path) -> None:
    """A run of its own seed and kind; the last kind diverges, which must not leak either."""
    base: dict[str, Any] = {
        "seed": number,
        "task": {"order": 7},
        "network": {"width": 32},
        "max_steps": 12,
        "output_dir": str(folder),
        "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}, "progress": {"enabled": False}},
        "logger": {"mode": "disabled"},
        "trainer": {"threads": 1, "accelerator": "cpu"},
    }
    values = base | KINDS[number % len(KINDS)]
    if "lr" in values.get("optimizer", {}):
        with pytest.raises(DivergenceError):
            train.run(values)
    else:
        assert train.run(values).summary["final"]["step"] == 12
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
def test_memory_does_not_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow because it goes on for minutes: at least five rounds of every kind after three to warm up."""
    end = time.monotonic() + 60 * MINUTES
    number = 0
    seen: list[float] = []
    while number < 8 * len(KINDS) or time.monotonic() < end:
        one_run(number, tmp_path / "runs")
        number += 1
        if number >= 3 * len(KINDS) and number % len(KINDS) == 0:
            seen.append(resident_megabytes())
    third = max(1, len(seen) // 3)
    first, last = np.median(seen[:third]), np.median(seen[-third:])
    with capsys.disabled():
        print(f"\n{number} runs: {seen[0]:.1f} MB after warm-up, {first:.1f} → {last:.1f} MB, at most {max(seen):.1f}")
    assert last - first < TOLERANCE_MB
