"""What every logger of a run gets: the rows, the stages and the pictures. metrics.csv is written beside all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger

GENERALIZED = 0.99
"""The test accuracy from which a network has generalized, as on the terminal."""


class RunLogger(Logger):
    """A logger of Lightning that also takes earlier rows, stage transitions and pictures.

    Args:
        first: the first row that the logger lacks; earlier rows are not logged again.
        earlier: the rows that were measured before this process, in order.
        more: arguments of the next class.
    """

    def __init__(self, first: int, earlier: Iterable[Mapping[str, float]], **more: Any) -> None:
        super().__init__(**more)
        self._first, self._newest = first, first - 1
        self._earlier = earlier

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log_earlier_rows()
        self.take(metrics, self._newest if step is None else step)

    def log_earlier_rows(self) -> None:
        """Log the earlier rows that the logger lacks; further calls do nothing."""
        earlier, self._earlier = self._earlier, ()
        for row in earlier:
            self.take(row, int(row["step"]))

    def take(self, values: Mapping[str, Any], step: int) -> None:
        """Log ``values`` with row ``step``, unless the logger has that row."""
        raise NotImplementedError

    def draw(self, step: int, name: str, picture: Path) -> None:
        """Log an image file with row ``step``."""

    def mark_transition(self, event: Mapping[str, Any]) -> None:
        """Log an entry of stages.json as a point of ``stage/transition``."""

    def mark_end(self, stages: Mapping[str, Any], step: int) -> None:
        """Log the contents of stages.json with the last row."""


def run_loggers(trainer: lightning.Trainer) -> list[RunLogger]:
    """The loggers of this trainer beside metrics.csv."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
