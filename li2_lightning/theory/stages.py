"""The rule that declares the three stages from the columns of a run, with hysteresis and evidence.

The stages are those of arXiv:2509.21519; the rule is this project's own.

* I lazy: V fits, and G_F has no label structure.
* I → II: training accuracy ≥ .99 and independence ≥ .5, for five rows in a row.
* II → III: independence has fallen below .8 of its peak **and** coupling leads it by ≥ .05, for five rows in a row.

A run has stalled if G_F loses both alignments; it then stays in stage II. Stage III is not generalization: with too few
data the features that grow are memorizing ones.

If the theory predicts no ridge equilibrium (decoupled decay, cross-entropy), coupling need not lead, and V may fit the
training rows only after independence has risen and fallen. Then I → II needs independence ≥ .5 in any row so far, and
II → III is also declared when energy and purity have grown since independence fell. Such a transition has a caveat.

In a deeper network the same rule is applied to each hidden layer, with the columns of that layer (`layer_column`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

TRAIN_ACCURACY, INDEPENDENCE, COUPLING = "train/accuracy", "gradient/independence", "gradient/coupling"
DECISIVE = (TRAIN_ACCURACY, INDEPENDENCE, COUPLING)
PEAK = f"peak of {INDEPENDENCE}"
GROWING = ("energy/mean", "features/purity")


def layer_column(column: str, layer: int | None) -> str:
    """The column of one hidden layer: ``gradient/2/norm`` for ``gradient/norm``; ``column`` for the whole network.

    Training accuracy is that of the network.
    """
    family, name = column.split("/")
    return column if layer is None or column == TRAIN_ACCURACY else f"{family}/{layer}/{name}"


@dataclass(frozen=True)
class Thresholds:
    """When a transition is declared.

    Attributes:
        rows: number of consecutive rows that must agree; the step of the transition is the last of them.
        train_accuracy, independence: I → II needs both columns at or above these values.
        independence_fall: II → III needs independence below this multiple of its peak.
        coupling_lead: II → III also needs coupling − independence of at least this, and coupling not below
            stalled_alignment.
        feature_growth: without a predicted ridge equilibrium, II → III needs instead of the lead that mean energy, and
            purity if it is measured, are at least this multiple of their values when independence fell.
        stalled_alignment: a cosine below this value counts as lost; a run that has lost both at the end has stalled.
    """

    rows: int = 5
    train_accuracy: float = 0.99
    independence: float = 0.5
    independence_fall: float = 0.8
    coupling_lead: float = 0.05
    feature_growth: float = 1.5
    stalled_alignment: float = 0.35

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "rows":
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(f"rows={value!r} does not fit; it is an integer of at least 1.")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{item.name}={value!r} does not fit; it is a finite number.")


@dataclass
class Transition:
    """One declared transition.

    Attributes:
        source, target: numbers of the stages.
        step: row at which it was declared.
        first_step: first of the agreeing rows.
        lag: number of steps from ``first_step`` to ``step``.
        evidence: the columns that the rule used, at ``step``.
        caveat: a sentence about what weakens the claim, or None.
    """

    source: int
    target: int
    step: int
    first_step: int
    evidence: dict[str, float]
    caveat: str | None = None

    @property
    def lag(self) -> int:
        return self.step - self.first_step

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``stages.json``."""
        return {"from": self.source, "to": self.target, "step": self.step, "first_step": self.first_step,
                "lag": self.lag, "evidence": self.evidence, "caveat": self.caveat}  # fmt: skip


@dataclass
class StageTracker:
    """Takes the rows of a run in order and declares transitions.

    Args:
        thresholds: of the rule.
        equilibrium_caveat: why no ridge equilibrium is predicted for this run; None where one is.
        layer: the hidden layer whose columns are followed; None for those of the network.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    equilibrium_caveat: str | None = None
    layer: int | None = None
    stage: int = 1
    transitions: list[Transition] = field(default_factory=list)
    peak: float = -math.inf
    at_fall: dict[str, float] = field(default_factory=dict)
    agreeing: int = 0
    first_agreeing: int = 0
    last: dict[str, float] = field(default_factory=dict)

    def update(self, step: int, row: Mapping[str, float | None]) -> Transition | None:
        """Take row ``step``; return the transition that this row completes, or None.

        A row in which a needed column is undefined is skipped: it neither agrees nor resets the count of rows.
        """
        values = {name: row.get(layer_column(name, self.layer)) for name in (*DECISIVE, *GROWING)}
        seen = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        if self.stage == 3 or any(name not in seen for name in DECISIVE):
            return None
        self.last = seen
        self._follow(seen)
        if self.stage == 2 and self._growth_unknown(seen):
            return None
        agrees, caveat = self._leaves_lazy(seen) if self.stage == 1 else self._turns_interactive(seen)
        if not agrees:
            self.agreeing = 0
            return None
        if self.agreeing == 0:
            self.first_agreeing = step
        self.agreeing += 1
        if self.agreeing < self.thresholds.rows:
            return None
        evidence = {layer_column(name, self.layer): value for name, value in seen.items()}
        evidence[f"peak of {layer_column(INDEPENDENCE, self.layer)}"] = self.peak
        transition = Transition(self.stage, self.stage + 1, step, self.first_agreeing, evidence, caveat)
        self.stage += 1
        self.agreeing = 0
        self.transitions.append(transition)
        return transition

    @property
    def stalled(self) -> bool:
        """Whether G_F, still in stage II, has lost both alignments."""
        if self.stage != 2 or not self.last:
            return False
        limit = self.thresholds.stalled_alignment
        return self._has_fallen(self.last) and max(self.last[INDEPENDENCE], self.last[COUPLING]) < limit

    def state_dict(self) -> dict[str, Any]:
        """The state in plain containers; `load_state_dict` continues from it."""
        state = asdict(self)
        del state["thresholds"], state["equilibrium_caveat"], state["layer"]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; thresholds, caveat and layer stay those of this tracker."""
        for name, value in state.items():
            setattr(self, name, value)
        self.transitions = [Transition(**entry) for entry in state["transitions"]]

    def _leaves_lazy(self, row: Mapping[str, float]) -> tuple[bool, str | None]:
        limits = self.thresholds
        if row[TRAIN_ACCURACY] < limits.train_accuracy:
            return False, None
        if row[INDEPENDENCE] >= limits.independence:
            return True, None
        if self.equilibrium_caveat is None:
            return False, None
        return self.peak >= limits.independence, f"{self.equilibrium_caveat}; independence peaked before V had fitted"

    def _turns_interactive(self, row: Mapping[str, float]) -> tuple[bool, str | None]:
        if not self._has_fallen(row):
            return False, None
        if self._leads(row):
            return True, self.equilibrium_caveat
        if self.equilibrium_caveat is None:
            return False, None
        growth = [row[name] / value for name, value in self.at_fall.items() if name in row and value > 0]
        grown = bool(growth) and min(growth) >= self.thresholds.feature_growth
        return grown, f"{self.equilibrium_caveat}; read from the growth of the features since independence fell"

    def _growth_unknown(self, row: Mapping[str, float]) -> bool:
        """Whether only growth could decide, but this row lacks a column of the row in which independence fell."""
        if self.equilibrium_caveat is None or not self._has_fallen(row) or self._leads(row):
            return False
        return not self.at_fall or any(name not in row for name in self.at_fall)

    def _leads(self, row: Mapping[str, float]) -> bool:
        """Whether coupling leads and is not lost itself; a run that lost both alignments has stalled."""
        ahead = row[COUPLING] - row[INDEPENDENCE] >= self.thresholds.coupling_lead
        return ahead and row[COUPLING] >= self.thresholds.stalled_alignment

    def _follow(self, row: Mapping[str, float]) -> None:
        """Record the peak of independence, and energy and purity at the row in which it fell."""
        self.peak = max(self.peak, row[INDEPENDENCE])
        if not self._has_fallen(row):
            self.at_fall = {}
        elif not self.at_fall:
            self.at_fall = {name: row[name] for name in GROWING if name in row}

    def _has_fallen(self, row: Mapping[str, float]) -> bool:
        return row[INDEPENDENCE] < self.thresholds.independence_fall * self.peak
