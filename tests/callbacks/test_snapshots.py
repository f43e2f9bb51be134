"""Snapshots of the weights: in which rows they are kept, what they hold, and that a resumed run has the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

import train
from callbacks.snapshots import Snapshots
from li2_lightning.errors import InputError, Interrupted
from li2_lightning.runs.snapshots import read_snapshot, snapshots, write_snapshot
from tests.conftest import added

OFF = {name: {"enabled": False} for name in ("report", "pictures", "progress", "interaction", "energy", "gram",
                                             "features", "updates", "stages")}  # fmt: skip


def run(folder: Path, **values: Any) -> Path:
    """Directory of a tiny run with snapshots."""
    base = {
        "task": {"order": 7},
        "network": {"width": 8},
        "max_steps": 12,
        "output_dir": str(folder),
        "logger": {"mode": "disabled"},
        "trainer": {"threads": 1, "accelerator": "cpu"},
        "callbacks": OFF | {"snapshots": {"every_n_steps": "log4"}, "checkpoint": {"every_n_steps": 2}},
    }
    return train.run({**base, **values}).directory


def contents(directory: Path) -> dict[int, bytes]:
    return {step: read_snapshot(path).tobytes() for step, path in snapshots(directory).items()}


def test_a_default_run_keeps_18_snapshots_of_two_bytes_a_weight(tmp_path: Path) -> None:
    cadence = Snapshots().cadence
    assert sum(cadence.due(row, row == 400) for row in range(401)) == 18
    write_snapshot(tmp_path, 0, torch.randn(142, 2048, generator=torch.Generator().manual_seed(0)))
    (path,) = snapshots(tmp_path).values()
    assert path.stat().st_size < 2 * 142 * 2048 + 1000


def test_a_snapshot_holds_the_weights_of_its_row(tmp_path: Path) -> None:
    directory = run(tmp_path)
    assert list(snapshots(directory)) == [0, 1, 2, 4, 6, 10, 12]
    last = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["network.W"].numpy()
    kept = read_snapshot(snapshots(directory)[12])
    assert np.abs(kept - last).max() < 2**-11 * np.abs(last).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_snapshot_keeps_every_size_and_kind_of_weights(tmp_path: Path, dtype: torch.dtype, scale: float) -> None:
    weights = scale * torch.randn(6, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    write_snapshot(tmp_path, 3, weights)
    kept = read_snapshot(snapshots(tmp_path)[3])
    assert kept.shape == (6, 5)
    assert np.iscomplexobj(kept) is dtype.is_complex
    assert np.abs(kept - weights.numpy()).max() < 2**-10 * np.abs(weights.numpy()).max()


def test_weights_that_are_zero_have_a_snapshot_and_weights_that_are_not_finite_none(tmp_path: Path) -> None:
    write_snapshot(tmp_path, 0, torch.zeros(4, 2))
    write_snapshot(tmp_path, 1, torch.tensor([[1.0, torch.nan]]))
    assert {step: read_snapshot(path).any() for step, path in snapshots(tmp_path).items()} == {0: False}


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    write_snapshot(tmp_path, 0, torch.ones(4, 2))
    (path,) = snapshots(tmp_path).values()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"row-000000\.npz cannot be read"):
        read_snapshot(path)


class StopsInRow(lightning.Callback):
    """A signal comes in a row that has no snapshot and no checkpoint of its own."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 7:
            pl_module.stop_signal = 15


def test_a_resumed_run_has_the_same_snapshots(tmp_path: Path) -> None:
    whole = contents(run(tmp_path / "whole"))
    with added(StopsInRow), pytest.raises(Interrupted):
        run(tmp_path / "stopped")
    assert contents(run(tmp_path / "stopped", resume="auto")) == whole


def test_a_longer_run_has_the_snapshots_of_the_run_that_it_continues(tmp_path: Path) -> None:
    short = run(tmp_path, max_steps=6)
    longer = run(tmp_path, resume=str(short / "checkpoints" / "row-000004.ckpt"))
    assert contents(longer) == contents(run(tmp_path / "whole"))


@pytest.mark.parametrize(
    "values",
    [
        {"task": {"name": "expression", "expression": "x*y", "modulus": 5}},
        {"network": {"name": "transformer", "width": 8, "activation": "relu"}},
    ],
)
def test_what_has_no_features_on_a_group_has_no_snapshots(tmp_path: Path, values: dict[str, Any]) -> None:
    assert not (run(tmp_path, **values) / "features").exists()
