"""Optimizers compared: their tuning on one task, and their best settings on fresh seeds and other tasks."""

from li2_lightning.analysis.race.entrants import (
    LEVEL,
    Entrant,
    describe_setting,
    entrants,
    node_statistics,
    share_statistics,
)
from li2_lightning.analysis.race.table import markdown, race_table

__all__ = [
    "LEVEL",
    "Entrant",
    "describe_setting",
    "entrants",
    "markdown",
    "node_statistics",
    "race_table",
    "share_statistics",
]
