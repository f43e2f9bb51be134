"""The results of a confirmation: the step at which each seed arrived, in a small file of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from li2_lightning.analysis.race.statistics import Values
from li2_lightning.errors import InputError
from li2_lightning.files import replacing

COLUMNS = ("workload", "optimizer", "setting", "limit")


@dataclass(frozen=True)
class Results:
    """Steps to test accuracy .99.

    Attributes:
        optimizers: the entrants.
        settings: the setting of each entrant, as text.
        workloads: what they were trained on.
        limits: the largest step of each workload.
        seeds: the seeds, the same for all.
        steps: entrants × workloads × seeds; ∞ for a seed that never arrived.
    """

    optimizers: Sequence[str]
    settings: Sequence[str]
    workloads: Sequence[str]
    limits: Sequence[int]
    seeds: Sequence[int]
    steps: Values

    def write(self, path: Path) -> None:
        """Write a table with a line for each workload and entrant, and a column for each seed, empty for never."""
        lines = [
            [workload, optimizer, setting, limit, *("" if np.isinf(s) else f"{s:g}" for s in self.steps[e, w])]
            for w, (workload, limit) in enumerate(zip(self.workloads, self.limits, strict=True))
            for e, (optimizer, setting) in enumerate(zip(self.optimizers, self.settings, strict=True))
        ]
        with replacing(path) as temporary:
            pd.DataFrame(lines, columns=[*COLUMNS, *map(str, self.seeds)]).to_csv(temporary, index=False)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` wrote.

        Raises:
            InputError: the file is no such table, or an entrant has no line for one of the workloads.
        """
        try:
            table = pd.read_csv(path, dtype=dict.fromkeys(COLUMNS[:3], str))
            seeds = [int(name) for name in map(str, table) if name not in COLUMNS]
            steps = table.set_index(["optimizer", "workload"])[list(map(str, seeds))].astype(float).fillna(np.inf)
            settings = dict(zip(table["optimizer"], table["setting"], strict=True))
            limits = dict(zip(table["workload"], table["limit"].astype(int), strict=True))
            values = [[steps.loc[(optimizer, workload)].to_numpy() for workload in limits] for optimizer in settings]
            if len(table) != len(settings) * len(limits):
                raise ValueError("an optimizer has two lines for a workload")
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; li2 race DIR --confirm SEEDS -o {path} writes it.") from error
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} holds no results of li2 race --confirm ({error}).") from error
        return cls(
            list(settings), list(settings.values()), list(limits), list(limits.values()), seeds, np.array(values)
        )
