"""What a confirmation shows: intervals, pairs, groups and profiles, and the tables of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd

from li2_lightning.analysis.race.results import Results
from li2_lightning.analysis.race.statistics import (
    Values,
    groups,
    holm,
    interval,
    ratio,
    resamples,
    scores,
    signed_rank,
    to_fastest,
)

CHANCE = 0.05
"""The chance that any pair is wrongly said to differ."""


@dataclass(frozen=True)
class Pair:
    """The steps of one entrant over those of another, by seed and workload.

    Attributes:
        ratio: the median over all seeds and workloads; below 1 where the first entrant is faster.
        low, high: its bootstrap interval, seeds drawn within each workload.
        chance: the probability of `signed_rank` on log ratios, corrected by Holm for all pairs.
    """

    first: int
    second: int
    ratio: float
    low: float
    high: float
    chance: float

    @property
    def differs(self) -> bool:
        """Whether the test tells the two apart."""
        return self.chance < CHANCE


class Standings:
    """The entrants of `Results`, the best score first."""

    def __init__(self, results: Results) -> None:
        order = np.argsort(-scores(to_fastest(np.median(results.steps, axis=2))), kind="stable")
        self.optimizers = [results.optimizers[i] for i in order]
        self.settings = [results.settings[i] for i in order]
        self.workloads, self.limits, self.seeds = results.workloads, results.limits, results.seeds
        self.steps: Values = results.steps[order]

    @cached_property
    def medians(self) -> Values:
        """Median step of each entrant and workload."""
        median: Values = np.median(self.steps, axis=2)
        return median

    @cached_property
    def resampled(self) -> Values:
        """`medians` of bootstrap samples × entrants × workloads; an entrant has the same seeds as all others."""
        columns = [
            np.median(self.steps[:, w][:, resamples(len(self.seeds), seed=w)], axis=2)
            for w in range(len(self.workloads))
        ]
        return np.stack(columns, axis=2).swapaxes(0, 1)

    @cached_property
    def scores(self) -> Values:
        """Score of each entrant (`statistics.scores`)."""
        return scores(to_fastest(self.medians))

    @cached_property
    def score_interval(self) -> tuple[Values, Values]:
        """The ends of the interval of `scores`."""
        return interval(np.stack([scores(to_fastest(medians)) for medians in self.resampled]))

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two entrants, the one with the better score first."""
        indices = [resamples(len(self.seeds), seed=w) for w in range(len(self.workloads))]
        found, chances = [], []
        for first, second in combinations(range(len(self.optimizers)), 2):
            ratios = ratio(self.steps[first], self.steps[second])
            drawn = np.concatenate([ratios[w][drawing] for w, drawing in enumerate(indices)], axis=1)
            low, high = interval(np.median(drawn, axis=1))
            found.append((first, second, float(np.median(ratios)), float(low), float(high)))
            with np.errstate(divide="ignore"):
                chances.append(signed_rank(np.log(ratios).ravel()))
        return [Pair(*values, chance) for values, chance in zip(found, holm(chances).tolist(), strict=True)]

    @cached_property
    def groups(self) -> list[str]:
        """The letters of each entrant (`statistics.groups`)."""
        differ = np.zeros((len(self.optimizers),) * 2, dtype=bool)
        for pair in self.pairs:
            differ[pair.first, pair.second] = pair.differs
        return groups(differ)

    def between(self, first: int, second: int) -> tuple[float, float, float]:
        """Median ratio of the steps of two entrants, with its interval; 1 for an entrant and itself."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair.ratio, pair.low, pair.high
            if (pair.second, pair.first) == (first, second):
                ends = (1 / value if value else np.inf for value in (pair.ratio, pair.high, pair.low))
                return tuple(ends)  # type: ignore[return-value]
        return 1.0, 1.0, 1.0

    @property
    def reference(self) -> int:
        """The entrant to which others are compared: adam, if it is one, else the first."""
        return self.optimizers.index("adam") if "adam" in self.optimizers else 0

    def overall(self) -> pd.DataFrame:
        """A line for each entrant, over all workloads."""
        low, high = self.score_interval
        reference = self.optimizers[self.reference]
        return pd.DataFrame(
            {
                "optimizer": optimizer,
                "score": f"{self.scores[i]:.2f} ({low[i]:.2f}–{high[i]:.2f})",
                f"steps over {reference}'s": _with_interval(*self.between(i, self.reference), ".2f"),
                "group": self.groups[i],
                "workloads": f"{int(np.isfinite(self.medians[i]).sum())} of {len(self.workloads)}",
                "seeds": f"{int(np.isfinite(self.steps[i]).sum())} of {self.steps[i].size}",
                "setting": self.settings[i],
            }
            for i, optimizer in enumerate(self.optimizers)
        )

    def by_workload(self) -> pd.DataFrame:
        """Median step of each entrant on each workload with its interval."""
        low, high = interval(self.resampled)
        return pd.DataFrame(
            {
                "optimizer": optimizer,
                **{
                    workload: _with_interval(self.medians[i, w], low[i, w], high[i, w], "g")
                    for w, workload in enumerate(self.workloads)
                },
            }
            for i, optimizer in enumerate(self.optimizers)
        )

    def all_pairs(self) -> pd.DataFrame:
        """A line for each pair."""
        return pd.DataFrame(
            {
                "steps of": self.optimizers[pair.first],
                "over those of": self.optimizers[pair.second],
                "ratio": _with_interval(pair.ratio, pair.low, pair.high, ".2f"),
                "p": f"{pair.chance:.2g}",
                "differ": "yes" if pair.differs else "no",
            }
            for pair in self.pairs
        )


def _with_interval(value: float, low: float, high: float, form: str) -> str:
    """As "38 (36–40)"; ∞ is a step that was never reached."""
    shown = [format(x, form) if np.isfinite(x) else "never" for x in (value, low, high)]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"
