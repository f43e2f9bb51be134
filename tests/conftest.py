"""What every test stands on: one thread, no W&B settings from outside, and a tiny run to look into."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import train
from li2_lightning.cli import main as li2

torch.set_num_threads(1)

# What the installed script `li2` runs, for a process of its own: python -c LI2 COMMAND.
LI2 = "from li2_lightning.cli.main import main; raise SystemExit(main())"


def forget_wandb(patch: pytest.MonkeyPatch) -> None:
    """Take W&B's settings out of the environment."""
    # The address of W&B's process is not put back: after a teardown in the test it would lead nowhere.
    os.environ.pop("WANDB_SERVICE", None)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def _no_wandb_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        forget_wandb(patch)
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("wandb")))
        yield


def cosine(left: Tensor, right: Tensor) -> float:
    """Re⟨left, right⟩/(‖left‖‖right‖)."""
    return float((left * right.conj()).sum().real / left.norm() / right.norm())


def li2_command(name: str) -> Callable[[Sequence[str]], int]:
    """``li2 NAME`` as a function of its arguments, which returns the exit code."""
    return lambda arguments: li2.main([name, *arguments])


@contextlib.contextmanager
def added(make: Callable[[], lightning.Callback]) -> Iterator[None]:
    """Every run that is assembled in the block has one more callback, after its own."""
    build = train.build_callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_callbacks", lambda sections: [*build(sections), make()])
        yield


@dataclass
class Seen:
    """What a callback sees of one row, copied."""

    weights: dict[str, Tensor]
    features: Tensor
    outputs: Tensor


@dataclass
class Run:
    """A finished run: its directory, metrics.csv as exact floats (an empty cell is None), and what its rows held."""

    directory: Path = Path()
    rows: list[dict[str, float | None]] = field(default_factory=list)
    seen: dict[int, Seen] = field(default_factory=dict)
    batches: list[Any] = field(default_factory=list)
    module: Any = None
    data: Any = None

    def column(self, name: str) -> list[float | None]:
        return [row[name] for row in self.rows]

    def read(self, directory: Path) -> None:
        self.directory = directory
        with (directory / "metrics.csv").open(encoding="utf-8") as stream:
            self.rows = [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(stream)]


class Probe(lightning.Callback):
    """The last of the callbacks: notes what there was to see."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.run.batches.append(batch)

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        self.run.module, self.run.data = module, module.data
        weights = {name: p.detach().clone() for name, p in module.network.named_parameters()}
        # Block by block, so that the callbacks after this one do not find the features whole.
        self.run.seen[state.step] = Seen(weights, torch.cat(list(state.share_blocks())).clone(), state.outputs.clone())


@pytest.fixture
def tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """``tiny_run("loss=projected_mse", "max_steps=5", ...)``: Z7, width 16, float64, 10 steps unless said otherwise."""

    def run(*overrides: str, into: Run | None = None, callbacks: Sequence[lightning.Callback] = ()) -> Run:
        """With ``into`` a run that raises can be looked at, too; ``callbacks`` come after those of the config."""
        record = into or Run()
        build = train.build_callbacks
        base = {
            "max_steps": 10,
            "output_dir": str(tmp_path),
            "network": {"width": 16},
            "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}},
            "logger": {"mode": "disabled"},
            "trainer": {"accelerator": "cpu", "precision": "64-true"},
        }
        task = {} if any(text.startswith("task.") for text in overrides) else {"task": {"order": 7}}
        config = OmegaConf.merge(base, task, OmegaConf.from_dotlist(list(overrides)))
        with monkeypatch.context() as patch:
            patch.setattr(train, "build_callbacks", lambda sections: [*build(sections), *callbacks, Probe(record)])
            try:
                record.read(train.run(config).directory)
            finally:
                if into is not None and record.module is not None:
                    record.read(Path(record.module.trainer.default_root_dir))
        return record

    return run


@pytest.fixture
def make_record() -> type[Run]:
    """For ``into``."""
    return Run


@pytest.fixture(scope="session")
def small_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs of Z7, two learning rates and two seeds each, below one folder; not to be written into."""
    folder = tmp_path_factory.mktemp("sweep")
    for lr in (1e-3, 2e-2):
        for seed in (0, 1):
            values = {
                "seed": seed,
                "name": "small",
                "max_steps": 12,
                "output_dir": str(folder),
                "task": {"order": 7},
                "network": {"width": 8},
                "optimizer": {"lr": lr},
                "callbacks": {"report": {"enabled": False}, "snapshots": {"every_n_steps": "log2"}},
                "logger": {"mode": "disabled"},
                "trainer": {"accelerator": "cpu", "threads": 1},
            }
            train.run(values)
    return folder


@pytest.fixture
def own_sweep(small_sweep: Path, tmp_path: Path) -> Path:
    """A copy of `small_sweep` to write into."""
    return Path(shutil.copytree(small_sweep, tmp_path / "own", symlinks=True))
