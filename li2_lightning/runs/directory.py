"""The run directory: its path, its lock, and the beginning and the end of a run in it."""

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
from typing import Any

import lightning
import torch

import li2_lightning
from li2_lightning.clock import clock
from li2_lightning.config.identity import LATEST, config_hash, run_name
from li2_lightning.config.schema import Config, to_plain
from li2_lightning.errors import BusyError, DamagedError, DivergenceError, InputError, Interrupted, StorageError
from li2_lightning.files import is_locked, link_or_copy, lock, replacing, row_files, write_json, write_yaml
from li2_lightning.log import say
from li2_lightning.runs.checkpoints import WINDOW, Start, continue_from, lies_in, read_own_part, remove_windows
from li2_lightning.runs.metrics_csv import first_step, read_metrics

SCHEMA_VERSION = 1
THRESHOLDS = (0.5, 0.9, 0.99)
# What `features/` holds of a row: its picture and its snapshot.
FEATURE_FILES = (".png", ".npz")
# Errors of the disk, not of the file that was being written.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        directory: the run directory.
        summary: summary.json.
        stored: whether the run had ended before and was not repeated.
    """

    directory: Path
    summary: dict[str, Any]
    stored: bool


@dataclass(frozen=True)
class RunDirectory:
    """The directory ``outputs/<name>/<config-hash>-s<seed>/`` of one run.

    It holds config.yaml, metrics.csv, stages.json, summary.json, checkpoints/, report.png, and wandb/.
    """

    path: Path

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        """The directory of the run of ``config``; it need not exist."""
        return cls(Path(config.output_dir) / run_name(config) / f"{config_hash(config)}-s{config.seed}")

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self._checkpoints / "last.ckpt"

    def summary(self) -> dict[str, Any] | None:
        """summary.json; None until the run has ended."""
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

    def close(self) -> dict[str, Any]:
        """Count the time since the end of the fit, as W&B's last upload, in summary.json, and return its contents."""
        summary = self.summary()
        assert summary is not None
        summary |= clock.summary()
        with self._storing():
            write_json(self.path / "summary.json", summary)
        return summary

    def stored(self, config: Config) -> dict[str, Any] | None:
        """The summary of a run that has ended and is not to be repeated; else None.

        Raises:
            DivergenceError: the run diverged.
        """
        return None if config.force else self._result()

    def decide(self, config: Config) -> Decision:
        """Decide whether a run of ``config`` trains, and from where. Nothing is written; `locked` decides again.

        Raises:
            DivergenceError: the run diverged.
            BusyError: another process writes the directory.
            InputError: the directory holds an unfinished run, without ``resume`` or ``force``; or the run cannot
                continue from the checkpoint (`continue_from`).
        """
        try:
            return self._decide(config, None)
        except InputError as error:
            # A file that another process is writing may be incomplete, which is no fault of the directory.
            if is_locked(self.path / ".lock"):
                raise self._busy() from error
            raise

    @contextlib.contextmanager
    def locked(self, config: Config, first: Decision) -> Iterator[Decision]:
        """Lock the directory for the block and decide again; where the run trains, prepare the directory.

        Another process may have begun or ended the run since the first decision. ``force`` repeats a result that
        existed at the first decision; a newer result is returned.

        Args:
            first: the result of `decide`.

        Raises:
            BusyError: another process writes the directory.
            InputError: the directory cannot be written; and as for `decide`.
            DivergenceError: as for `decide`.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            own = lock(self.path / ".lock")
        except BlockingIOError as error:
            raise self._busy() from error
        except OSError as error:
            raise unwritable(config.output_dir, error) from error
        with own:
            decision = self._decide(config, first)
            if decision.stored is None:
                try:
                    self._prepare(config, decision.start)
                except OSError as error:
                    raise unwritable(config.output_dir, error) from error
                self._point_latest(Path(config.output_dir))
            yield decision

    def _busy(self) -> BusyError:
        return BusyError(f"{self.path} is being written by another process; wait for it or change name.")

    def _result(self) -> dict[str, Any] | None:
        summary = self.summary()
        if summary is not None and summary["status"] == "diverged":
            raise DivergenceError(f"{summary['reason']} (kept in {self.path}; force=true repeats it)")
        return summary

    def _decide(self, config: Config, first: Decision | None) -> Decision:
        if config.resume not in (None, "auto") and not Path(str(config.resume)).is_file():
            raise InputError(f"resume={config.resume!r} is no file; give a checkpoint, auto or null.")
        # Asked before the summary is read, so that a run that ends in between counts as ended.
        unfinished = (self.path / "config.yaml").exists()
        result_id = self._result_id()
        repeats = config.force and (first is None or first.result_id == result_id)
        if not repeats and (stored := self._result()) is not None:
            return Decision(result_id, stored=stored)
        return Decision(result_id, start=None if config.force else self._find_start(config, unfinished))

    def _result_id(self) -> tuple[int, int] | None:
        """Identifies the current summary.json, so that a replacement is noticed; None without the file."""
        try:
            stat = (self.path / "summary.json").stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _find_start(self, config: Config, unfinished: bool) -> Start | None:
        if config.resume is None:
            if unfinished:
                raise InputError(
                    f"{self.path} holds an unfinished run; continue it with resume=auto or start over with force=true."
                )
            return None
        if config.resume != "auto":
            path = Path(config.resume)
            return continue_from(path, read_own_part(path, f"resume={str(path)!r}"), config, self.path)
        rows = {row: path for row, path in row_files(self._checkpoints, ".ckpt").items() if row < config.max_steps}
        while rows:
            _, path = rows.popitem()
            try:
                ours = read_own_part(path, str(path))
            except DamagedError as error:
                before = f"continue from row {max(rows)}" if rows else "start at row 0"
                raise InputError(f"{str(error).rstrip('.')}; remove it, and resume=auto will {before}.") from error
            except InputError as error:
                instead = "continue from another one with resume=PATH, or start over with force=true"
                raise InputError(f"{str(error).rstrip('.')}; {instead}.") from error
            # No update follows the checkpoint of the last row. A run that was killed after this checkpoint and before
            # summary.json continues from an earlier one.
            if not ours.get("is_last"):
                return continue_from(path, ours, config, self.path)
        return None

    def _prepare(self, config: Config, start: Start | None) -> None:
        """Bring the directory to its state before the first row that this process trains."""
        if config.resume is None or config.force:
            # The summary is removed first: a half-emptied directory must not count as a finished run.
            for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name != "summary.json"):
                if entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        # A killed process leaves temporary files; no other process writes them while this process holds the lock.
        for part in self.path.rglob(".*.part"):
            part.unlink()
        write_yaml(self.path / "config.yaml", to_plain(config))
        self._remove_later(start)
        if start is not None and not (self.path / "metrics.csv").exists():
            # A longer run begins with the rows of the run that it continues.
            earlier = start.checkpoint.parent.parent
            for suffix in FEATURE_FILES:
                for step, path in row_files(earlier / "features", suffix).items():
                    if step <= start.step:
                        (self.path / "features").mkdir(exist_ok=True)
                        link_or_copy(path, self.path / "features" / path.name)
            if (earlier / "metrics.csv").exists():
                self._take_weights(config.callbacks.get("checkpoint", {}), start)
                with replacing(self.path / "metrics.csv") as temporary:
                    shutil.copyfile(earlier / "metrics.csv", temporary)

    def _take_weights(self, options: Mapping[str, Any], start: Start) -> None:
        """Link best.ckpt and stage-….ckpt of the run that this one continues, as far as they are of its rows.

        Args:
            options: of the callback ``checkpoint``.
        """
        for option, names in (("best", "best.ckpt"), ("transitions", "stage-[0-9].ckpt")):
            for path in start.checkpoint.parent.glob(names) if options.get(option) else ():
                with contextlib.suppress(InputError):
                    if read_own_part(path, str(path))["step"] <= start.step:
                        self._checkpoints.mkdir(exist_ok=True)
                        link_or_copy(path, self._checkpoints / path.name)

    def _remove_later(self, start: Start | None) -> None:
        """Remove the checkpoints, pictures and snapshots of the steps after ``start``, which this run makes again.

        The directory can be resumed whenever the process dies: first the step from which the run continues gets a file
        of its own; then later files are removed, the latest first.
        """
        step, checkpoints, pictures = -1 if start is None else start.step, self._checkpoints, self.path / "features"
        rows = row_files(checkpoints, ".ckpt")
        if start is not None and step not in rows and lies_in(start.checkpoint, self.path):
            rows[step] = checkpoints / f"row-{step:06d}.ckpt"
            link_or_copy(start.checkpoint, rows[step])
        if earlier := [path for at, path in sorted(rows.items()) if at <= step]:
            link_or_copy(earlier[-1], self.last_checkpoint)
        else:
            self.last_checkpoint.unlink(missing_ok=True)
        later = [path for at, path in sorted(rows.items(), reverse=True) if at > step]
        # After the checkpoints, so that none is left without its window.
        later += [path for at, path in row_files(checkpoints, WINDOW).items() if at > step]
        for path in (checkpoints / "best.ckpt", *checkpoints.glob("stage-[0-9].ckpt")):
            # A damaged file stays until the run replaces it.
            with contextlib.suppress(InputError):
                later += [path] if read_own_part(path, str(path))["step"] > step else []
        drawn = [path for at, path in reversed(row_files(pictures, ".png").items()) if at > step]
        # last.npz holds the weights of the newest picture.
        later += [pictures / "last.npz", *drawn] if drawn else []
        later += [path for at, path in reversed(row_files(pictures, ".npz").items()) if at > step]
        for path in later:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def summarizing(self, config: Config, start: int) -> Iterator[None]:
        """Write summary.json when the fit in the block ends or diverges; errors name the state that is kept.

        Args:
            start: the row at which this process begins.
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
        """Turn an error of the disk, or of a file of this directory, into a `StorageError`."""
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
            seconds: wall time of the fit in this process.
            rows_before: the row at which this process began.
            more: further entries.
        """
        metrics = read_metrics(self.path / "metrics.csv")
        last = {name: value for name, value in metrics.iloc[-1].items() if math.isfinite(value)}
        steps, metrics = int(last["step"]) - rows_before, metrics.set_index("step")
        stages = self.path / "stages.json"
        summary: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            **more,
            "final": {str(name): int(v) if name in ("step", "stage/index") else float(v) for name, v in last.items()},
            "first_step": {
                split: {f"{level:g}": first_step(metrics, f"{split}/accuracy", level) for level in THRESHOLDS}
                for split in ("train", "test")
            },
            "stages": json.loads(stages.read_text(encoding="utf-8")) if stages.exists() else None,
            **clock.summary(),
            "steps_per_second": round(steps / seconds, 3) if seconds > 0 else None,
            "config_hash": config_hash(config),
            "versions": versions(),
        }
        write_json(self.path / "summary.json", summary)
        # A run that is killed before this line continues from the row before the last, which needs its window.
        remove_windows(self._checkpoints, keep=1)

    def _point_latest(self, output_dir: Path) -> None:
        latest = output_dir / LATEST
        try:
            with replacing(latest) as temporary:
                temporary.symlink_to(os.path.relpath(self.path, output_dir), target_is_directory=True)
        except OSError as error:
            say(f"{latest} could not be pointed to {self.path}: {error.strerror}.")


@dataclass(frozen=True)
class Decision:
    """The decision whether a run returns ``stored``, continues from ``start``, or begins at row 0.

    Attributes:
        result_id: identifies the summary.json at the time of the decision; None without the file.
        stored: summary.json of a run that is not repeated.
        start: the checkpoint from which the run continues.
    """

    result_id: tuple[int, int] | None
    stored: dict[str, Any] | None = None
    start: Start | None = None


def unwritable(output_dir: str, error: OSError) -> InputError:
    """The error for an ``output_dir`` in which a folder cannot be made or locked."""
    return InputError(f"output_dir={output_dir!r} cannot be written: {error.strerror}.")


def versions() -> Mapping[str, str]:
    """The versions of Python and of the libraries that a run's numbers depend on."""
    return {
        "li2_lightning": li2_lightning.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "wandb": version("wandb"),
    }
