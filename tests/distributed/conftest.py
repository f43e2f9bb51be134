"""Runs on one and on several ranks, and how far apart they are."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import train
from li2_lightning.runs.directory import RunDirectory
from li2_lightning.runs.metrics_csv import read_metrics

ROOT = Path(train.__file__).parent
# Every column is on, the interaction columns and node_coupling more often than by default.
BASE = {
    "max_steps": 50,
    "task": {"order": 7},
    "network": {"width": 16},
    "data": {"train_size": 20},
    "callbacks": {
        "report": {"enabled": False},
        "pictures": {"enabled": False},
        "progress": {"enabled": False},
        "interaction": {"every_n_steps": 20},
    },
    "logger": {"mode": "disabled"},
    "trainer": {"accelerator": "cpu", "precision": "64-true", "threads": 1, "oversubscribe": True},
}
# Columns that count something: one count more or less of at least so many.
COUNTS = {
    "train/accuracy": "train",
    "test/accuracy": "test",
    "interaction/repelled_share": "pairs",
    "features/coverage": "one",
    "features/explained": "one",
    "energy/residual_missing": "fresh nodes",
    "circuits/softmax_collapse": "train",
}

Config = dict[str, Any]


def configure(output_dir: Path, *overrides: str) -> Config:
    """``BASE`` with dotted overrides, as plain containers."""
    merged = OmegaConf.merge(BASE, {"output_dir": str(output_dir)}, OmegaConf.from_dotlist(list(overrides)))
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def on_ranks(config: Mapping[str, Any], ranks: int) -> Config:
    """The same run on several ranks."""
    changed = copy.deepcopy(dict(config))
    changed["trainer"] |= {"devices": ranks}
    return changed


def directory(config: Mapping[str, Any]) -> Path:
    """Where a run is kept."""
    return RunDirectory.of(train.read_config(config)).path


def torchrun(ranks: int, configs: Sequence[Mapping[str, Any]], folder: Path) -> subprocess.CompletedProcess[str]:
    """All ``configs`` on ``ranks`` real processes."""
    listed = folder / f"configs-{ranks}.json"
    listed.write_text(json.dumps([on_ranks(config, ranks) for config in configs]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*launcher, str(Path(__file__).with_name("run_configs.py")), str(listed)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
        check=False,
    )


def differences(one: Path, several: Path, tolerance: float) -> list[str]:
    """Every weight and column of two runs that is further apart than it may be; empty where they agree."""
    found = []
    last = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (one, several)]
    assert last[0].keys() == last[1].keys()
    for name, weight in last[0].items():
        distance = float(torch.linalg.vector_norm(last[1][name] - weight) / torch.linalg.vector_norm(weight))
        if not distance <= tolerance:
            found.append(f"{name}: {distance:.1e}")
    left, right = read_metrics(one / "metrics.csv"), read_metrics(several / "metrics.csv")
    assert list(left.columns) == list(right.columns)
    assert left["step"].tolist() == right["step"].tolist()
    counts = {"train": 20, "test": 28, "pairs": 100, "one": 1, "fresh nodes": 64}
    for name in left.columns:
        a, b = left[name].to_numpy(), right[name].to_numpy()
        if (mismatch := (left[name].isna() != right[name].isna())).any():
            found.append(f"{name}: undefined in one only, row {int(mismatch.argmax())}")
            continue
        allowed = 1e-3 if name == "update/eigengap" else tolerance
        if name in COUNTS:
            allowed = max(tolerance, 1.0001 / counts[COUNTS[name]])
        off = abs(b - a) / (1.0 if name in COUNTS else abs(a).clip(min=1))
        worst = float(left[name].notna().to_numpy().dot(left[name].notna()) and off[left[name].notna()].max())
        if not worst <= allowed:
            found.append(f"{name}: {worst:.1e}")
    ends = [json.loads((path / "stages.json").read_text()) for path in (one, several)]
    if [event["step"] for event in ends[0]["events"]] != [event["step"] for event in ends[1]["events"]]:
        found.append("stages.json")
    return found


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, list[str]]]:
    """``compare(ranks, {name: overrides}, tolerance)``: what differs from the single process, by name."""

    def run(ranks: int, table: Mapping[str, Sequence[str]], tolerance: float) -> dict[str, list[str]]:
        folder = tmp_path_factory.mktemp("parity")
        configs = {
            name: configure(folder, *overrides, f"name=run-{index}")
            for index, (name, overrides) in enumerate(table.items())
        }
        outcome = torchrun(ranks, list(configs.values()), folder)
        assert outcome.returncode == 0, outcome.stderr[-4000:]
        found = {}
        for name, config in configs.items():
            single = train.run(config).directory
            found[name] = differences(single, directory(on_ranks(config, ranks)), tolerance)
        return found

    return run
