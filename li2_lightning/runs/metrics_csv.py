"""metrics.csv, which holds every row of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import lightning
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from li2_lightning.clock import clock
from li2_lightning.errors import InputError
from li2_lightning.files import replacing

if TYPE_CHECKING:
    import pandas as pd


class MetricsFile(Logger):
    """A Lightning logger that appends rows to a CSV file with a ``step`` column.

    An undefined value is an empty cell. Columns are in order of first appearance; a column that appears later rewrites
    the file, with that column empty before. Rows are flushed to the operating system in batches.

    Args:
        path: the file.
        keep_through: rows after this step are removed, since a resumed run writes them again; None removes all rows.
    """

    FLUSH_EVERY = 20

    def __init__(self, path: Path, keep_through: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._keep_through = keep_through
        self._columns: list[str] = []
        self._known: set[str] = set()
        self._stream: TextIO | None = None
        self._unflushed = 0
        self.rows_written = 0
        if keep_through is not None and path.exists():
            self.rows_written = len(_read_through(path, keep_through))

    @property
    def name(self) -> str:
        return "metrics.csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config stands in config.yaml."""

    @rank_zero_only
    @clock.part("logging")
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._stream is None:
            self._open()
        if not self._known.issuperset(metrics):
            self._widen([name for name in metrics if name not in self._known])
        assert self._stream is not None
        row = ["" if (value := metrics.get(name)) is None else _cell(name, value) for name in self._columns]
        # No cell needs quotes, and a csv.writer takes a fifth of the time of a row to find that out.
        self._stream.write(",".join(row) + "\n")
        self._unflushed += 1
        self.rows_written += 1
        if self._unflushed >= self.FLUSH_EVERY:
            self.save()

    @rank_zero_only
    def correct(self, step: int, values: Mapping[str, float]) -> None:
        """Replace values of a row in the file; an empty cell stays empty."""
        if self._stream is None:
            self._open()
        self.save()
        before = _read(self.path)
        after = [[*row] for row in before]
        for row in after:
            if row[0] == str(step):
                for place, name in enumerate(self._columns):
                    if name in values and row[place] != "":
                        row[place] = _cell(name, values[name])
        if after != before:
            self._rewrite(after)

    @rank_zero_only
    def save(self) -> None:
        """Hand the buffered rows to the operating system."""
        if self._stream is not None:
            self._stream.flush()
        self._unflushed = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            # A row that is logged later is appended.
            self._keep_through = 2**63
            stream.close()

    def _open(self) -> None:
        if self._keep_through is not None and self.path.exists():
            rows = _read_through(self.path, self._keep_through)
            with self.path.open(newline="", encoding="utf-8") as stream:
                self._columns = next(csv.reader(stream), [])
        else:
            self._columns, rows = [], []
        self._rewrite(rows)
        self.rows_written = len(rows)

    def _widen(self, new: list[str]) -> None:
        """Add columns, which are empty in the rows so far."""
        self.save()
        rows = _read(self.path) if self._columns else []
        self._columns += new
        self._rewrite([row + [""] * len(new) for row in rows])

    def _rewrite(self, rows: list[list[str]]) -> None:
        if self._stream is not None:
            self._stream.close()
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            self._known = set(self._columns)
            if self._columns:
                writer.writerow(self._columns)
            writer.writerows(rows)
        self._stream = self.path.open("a", newline="", encoding="utf-8")


def read_metrics(path: Path) -> pd.DataFrame:
    """metrics.csv as a table with an integer ``step``; empty cells are NaN; a line still being written is no row."""
    whole, newline, _ = path.read_text(encoding="utf-8").rpartition("\n")
    # pandas takes half a second to import, and a run reads its file only at its end.
    import pandas as pd

    return pd.read_csv(io.StringIO(whole + newline), dtype={"step": "int64"})


def first_step(metrics: pd.DataFrame, column: str, level: float) -> int | None:
    """The first step, in the index of ``metrics``, at which ``column`` was at least ``level``; None if it never was."""
    reached = metrics.index[metrics[column] >= level]
    return int(reached[0]) if len(reached) else None


def read_rows(path: Path, through: int | None = None) -> Iterator[dict[str, float]]:
    """The complete rows of a file up to step ``through``, each without its empty cells; all rows where None."""
    with path.open(newline="", encoding="utf-8") as stream:
        columns = next(csv.reader(stream), [])
    for row in _read(path) if through is None else _read_through(path, through):
        yield {name: float(cell) for name, cell in zip(columns, row, strict=True) if cell}


def rows_written(trainer: lightning.Trainer) -> int:
    """The number of rows in metrics.csv so far, including the rows of earlier processes of this run."""
    return sum(logger.rows_written for logger in trainer.loggers if isinstance(logger, MetricsFile))


def correct_row(trainer: lightning.Trainer, step: int, values: Mapping[str, float]) -> None:
    """`MetricsFile.correct` for the metrics.csv of this run, if it has one."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.correct(step, values)


def count_rows(path: Path, through: int) -> int:
    """The number of complete rows of a file up to step ``through``.

    Raises:
        InputError: the file cannot be read as a file of rows.
    """
    try:
        return len(_read_through(path, through))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a file of rows ({error}); start over with force=true.") from error


def _read_through(path: Path, step: int) -> list[list[str]]:
    return [row for row in _read(path) if row[0] != "" and int(row[0]) <= step]


def _read(path: Path) -> list[list[str]]:
    """The complete rows of a file, without the header; a last line that was cut off does not count."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    rows = list(csv.reader(whole.splitlines()))
    return [row for row in rows[1:] if len(row) == len(rows[0])]


def _cell(name: str, value: float) -> str:
    return str(int(value)) if name in ("step", "stage/index") else repr(float(value))
