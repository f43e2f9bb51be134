"""The directory that a run leaves: where it is, who may write it, and what is in it when it is done."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import lightning
import torch
from omegaconf import OmegaConf

import li2_lightning
from li2_lightning.config import LATEST, Config, config_hash, leaves, run_name, to_plain
from li2_lightning.errors import DamagedError, DivergenceError, InputError, Interrupted, StorageError
from li2_lightning.files import lock, replacing, write_json
from li2_lightning.log import say
from li2_lightning.metrics_file import count_rows, read_metrics
from li2_lightning.network import read_checkpoint

SCHEMA_VERSION = 1
THRESHOLDS = (0.5, 0.9, 0.99)
# Sections that a run must share with the checkpoint it continues from.
SHAPING = ("seed", "loss", "task", "data", "network", "optimizer", "scheduler")
# What is wrong with a disk, whatever was being written.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


@dataclass(frozen=True)
class RunResult:
    """What a run left: its directory, its summary.json, and whether it was there before."""

    directory: Path
    summary: dict[str, Any]
    stored: bool


@dataclass(frozen=True)
class RunDirectory:
    """``outputs/<name>/<config-hash>-s<seed>/``.

    Holds config.yaml, metrics.csv, stages.json, summary.json, checkpoints/, report.png, and wandb/.
    """

    path: Path

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        """Where the run of ``config`` is or will be."""
        return cls(Path(config.output_dir) / run_name(config) / f"{config_hash(config)}-s{config.seed}")

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    def summary(self) -> dict[str, Any] | None:
        """summary.json, which only an ended run has; None where there is none."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(summary, dict) or "status" not in summary:
                raise ValueError("it is no summary of a run")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise InputError(f"{path} cannot be read ({error}); remove it or use force=true.") from error
        return summary

    def stored(self, config: Config) -> dict[str, Any] | None:
        """The summary of this run where it has ended and is not to be repeated.

        Raises:
            DivergenceError: it ended by diverging.
        """
        summary = None if config.force else self.summary()
        if summary is not None and summary["status"] == "diverged":
            raise DivergenceError(f"{summary['reason']} (kept in {self.path}; force=true repeats it)")
        return summary

    def find_checkpoint(self, config: Config) -> Path | None:
        """What the run continues from; None where it starts at row 0.

        Raises:
            InputError: an unfinished run without ``resume`` or ``force``; ``resume`` names no checkpoint of ours.
        """
        if config.resume not in (None, "auto") and not Path(str(config.resume)).is_file():
            raise InputError(f"resume={config.resume!r} is no file; give a checkpoint, auto or null.")
        if not config.force and self.summary() is not None:
            return None
        unfinished = (self.path / "config.yaml").exists()
        if config.resume is None or config.force:
            if unfinished and not config.force:
                raise InputError(
                    f"{self.path} holds an unfinished run; continue it with resume=auto or start over with force=true."
                )
            return None
        if config.resume == "auto":
            # That of the last row is written before the report and summary.json: from there nothing would follow.
            rows = {int(path.stem[4:]): path for path in (self.path / "checkpoints").glob("row-*.ckpt")}
            earlier = [row for row in rows if row < config.max_steps]
            if not earlier:
                return None
            path = rows[max(earlier)]
            try:
                read_checkpoint(str(path), str(path))
            except DamagedError as error:
                before = f"continue from row {sorted(earlier)[-2]}" if len(earlier) > 1 else "start at row 0"
                raise InputError(f"{str(error).rstrip('.')}; remove it, and resume=auto will {before}.") from error
            except InputError as error:
                instead = "continue from another one with resume=PATH, or start over with force=true"
                raise InputError(f"{str(error).rstrip('.')}; {instead}.") from error
            return path
        path = Path(config.resume)
        read_checkpoint(str(path), f"resume={str(path)!r}")
        return path

    def claim(self, config: Config, keep: bool, checkpoint: Path | None = None) -> IO[str]:
        """Create the directory, or empty it unless ``keep``, and lock it; the lock lasts as long as the file is open.

        Args:
            checkpoint: what the run continues from; rows before it are taken over where this directory has none.

        Raises:
            InputError: another process writes it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = lock(self.path / ".lock")
        except BlockingIOError as error:
            raise InputError(f"{self.path} is being written by another process; wait for it or change name.") from error
        except OSError as error:
            raise InputError(f"output_dir={config.output_dir!r} cannot be written: {error.strerror}.") from error
        try:
            self._prepare(config, keep, checkpoint)
        except OSError as error:
            file.close()
            raise InputError(f"output_dir={config.output_dir!r} cannot be written: {error.strerror}.") from error
        self._point_latest(Path(config.output_dir))
        return file

    def _prepare(self, config: Config, keep: bool, checkpoint: Path | None) -> None:
        """What must be there, and nothing else, before the first row."""
        if not keep:
            for entry in self.path.iterdir():
                if entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        # What a killed process was writing; nobody else writes here while we hold the lock.
        for part in self.path.rglob(".*.part"):
            part.unlink()
        with replacing(self.path / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(to_plain(config))), encoding="utf-8")
        if checkpoint is not None and not (self.path / "metrics.csv").exists():
            # A longer run starts with the rows of the one that it continues.
            earlier = checkpoint.parent.parent / "metrics.csv"
            if earlier.exists():
                with replacing(self.path / "metrics.csv") as temporary:
                    shutil.copyfile(earlier, temporary)

    @contextlib.contextmanager
    def summarizing(self, config: Config, start: int) -> Iterator[None]:
        """Around the fit: summary.json when it ends well or diverges, and messages that say what is kept.

        Args:
            start: the row that this part of the run starts at.
        """
        began = time.monotonic()
        try:
            with self._storing():
                yield
        except DivergenceError as error:
            last = self.last_checkpoint
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was due before"
            reason = f"{error} Lower optimizer.lr; {kept}."
            with self._storing():
                self._finish(config, "diverged", time.monotonic() - began, start, reason=reason)
            raise DivergenceError(reason) from error
        except Interrupted as error:
            kept = f"Continue with resume=auto; the state is kept in {self.path}."
            message = f"{error} {kept if self.last_checkpoint.exists() else 'No checkpoint was kept.'}"
            raise Interrupted(error.signum, message) from error
        with self._storing():
            self._finish(config, "finished", time.monotonic() - began, start)

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Say in one sentence when the directory cannot be written any more."""
        try:
            yield
        except OSError as error:
            ours = error.filename is not None and Path(str(error.filename)).is_relative_to(self.path)
            if error.errno not in STORAGE and not ours:
                raise
            last = self.last_checkpoint
            kept = f"continues from {last}" if last.exists() else "starts over, since no checkpoint was due before"
            raise StorageError(
                f"{self.path} cannot be written any more: {error.strerror}. Mend that; then resume=auto {kept}."
            ) from error

    def _finish(self, config: Config, status: str, seconds: float, rows_before: int, **more: Any) -> None:
        """Write summary.json.

        Args:
            status: "finished" or "diverged".
            seconds: wall time of this process's part of the run.
            rows_before: step at which this part started.
            more: further entries.
        """
        metrics = read_metrics(self.path / "metrics.csv")
        last = {name: value for name, value in metrics.iloc[-1].items() if math.isfinite(value)}
        steps = int(last["step"]) - rows_before
        stages = self.path / "stages.json"
        summary: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            **more,
            "final": {str(name): int(v) if name in ("step", "stage/index") else float(v) for name, v in last.items()},
            "first_step": {
                split: {f"{level:g}": _first(metrics, f"{split}/accuracy", level) for level in THRESHOLDS}
                for split in ("train", "test")
            },
            "stages": json.loads(stages.read_text(encoding="utf-8")) if stages.exists() else None,
            "wall_time_s": round(seconds, 3),
            "steps_per_second": round(steps / seconds, 3) if seconds > 0 else None,
            "config_hash": config_hash(config),
            "versions": versions(),
        }
        write_json(self.path / "summary.json", summary)

    def _point_latest(self, output_dir: Path) -> None:
        latest = output_dir / LATEST
        try:
            with replacing(latest) as temporary:
                temporary.symlink_to(os.path.relpath(self.path, output_dir), target_is_directory=True)
        except OSError as error:
            say(f"{latest} could not be pointed to {self.path}: {error.strerror}.")


@dataclass(frozen=True)
class Start:
    """What a run continues from.

    Attributes:
        row: the last row before it.
        wandb: ``id`` of the W&B run to go on in; None: a new one.
    """

    row: int
    wandb: Mapping[str, Any] | None


def continue_from(checkpoint: Path, config: Config) -> Start:
    """Check that a run may continue from ``checkpoint``.

    Raises:
        InputError: it lies at or after the end of this run, or belongs to another experiment: everything that shapes
            the trajectory must agree; ``max_steps`` and what is measured may differ. Or metrics.csv lacks rows that
            were there when it was written.
    """
    where = f"resume={str(checkpoint)!r}"
    held = read_checkpoint(str(checkpoint), where)["li2_lightning"]
    assert isinstance(held, dict)
    before, now = (OmegaConf.create(plain) for plain in (held["config"], to_plain(config)))
    for key in leaves():
        section = key.partition(".")[0]
        if section in SHAPING and OmegaConf.select(before, key) != OmegaConf.select(now, key):
            theirs = OmegaConf.select(before, key)
            raise InputError(
                f"{where} was trained with {key}={theirs}, not {OmegaConf.select(now, key)}; set it alike."
            )
    if held["row"] >= config.max_steps:
        raise InputError(f"{where} holds row {held['row']} already, and max_steps={config.max_steps} ends there.")
    own = RunDirectory.of(config).path
    within = own.resolve() == checkpoint.resolve().parent.parent
    rows = own / "metrics.csv"
    if not rows.exists():
        rows = checkpoint.parent.parent / "metrics.csv"
    # A checkpoint that was taken out of its directory has left its rows behind, and starts a new file.
    there = count_rows(rows, held["row"]) if within or rows.exists() else held.get("rows", 0)
    if there < held.get("rows", 0):
        raise InputError(
            f"{rows} has {there} of the {held['rows']} rows that {where} continues; put the file back, or start over "
            "with force=true."
        )
    # A longer run in a directory of its own is another run on W&B, too.
    return Start(int(held["row"]), held.get("wandb") if within else None)


def versions() -> Mapping[str, str]:
    """What the numbers were made with."""
    return {
        "li2_lightning": li2_lightning.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "wandb": version("wandb"),
    }


def _first(metrics: Any, column: str, level: float) -> int | None:
    """The first step at which ``column`` reached ``level``."""
    reached = metrics.loc[metrics[column] >= level, "step"]
    return int(reached.iloc[0]) if len(reached) else None
