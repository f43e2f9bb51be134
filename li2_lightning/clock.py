"""The seconds of a run by part: what its user waits for.

At any moment exactly one part runs, so the parts add up to the whole. A process has one clock, since it trains one run
at a time. Times are those of the host: on an accelerator the work of a step counts where the host waits for it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from time import perf_counter
from typing import Any

PARTS = {
    "start": "imports, and everything before the first step",
    "steps": "forward passes over all rows, backward passes, updates, and Lightning's loop",
    "rows": "the columns of the callbacks",
    "interaction": "the interaction columns",
    "pictures": "pictures of the features",
    "report": "report.png",
    "checkpoints": "checkpoints, and copies of the best row",
    "logging": "metrics.csv, W&B and the terminal",
    "end": "everything after the last step that is in no other part",
}
"""The parts of every run. A callback with an attribute ``part`` of another name adds a part."""


class Clock:
    """Adds up seconds by part."""

    def __init__(self) -> None:
        self._made = perf_counter()
        self._starts_command = False
        self._blocks: dict[str, _Block] = {}
        self.begin()

    def starts_command(self) -> None:
        """Let the next run count from the import of this module, which is the first of a command."""
        self._starts_command = True

    def begin(self) -> None:
        """Begin a run: all parts are zero, and ``start`` runs."""
        self._since = self._made if self._starts_command else perf_counter()
        self._starts_command = False
        self._seconds = defaultdict(float, dict.fromkeys(PARTS, 0.0))
        # The part outside all blocks, and the parts of the blocks that have been entered. The last one runs.
        self._running = ["start"]

    def phase(self, part: str) -> None:
        """From now on time outside all blocks belongs to ``part``."""
        self._switch()
        self._running[0] = part

    def part(self, name: str) -> _Block:
        """A context manager and decorator: its time belongs to ``name``, and the parts around it pause."""
        if name not in self._blocks:
            self._blocks[name] = _Block(self, name)
        return self._blocks[name]

    def enter(self, name: str) -> None:
        """Let part ``name`` run until `leave`."""
        self._switch()
        self._running.append(name)

    def leave(self) -> None:
        """Let the part run again that ran before the last `enter`."""
        self._switch()
        self._running.pop()

    def summary(self) -> dict[str, Any]:
        """``seconds`` of each part so far, and their sum ``wall_time_s``."""
        self._switch()
        seconds = {part: round(value, 3) for part, value in self._seconds.items()}
        return {"wall_time_s": round(sum(seconds.values()), 3), "seconds": seconds}

    def _switch(self) -> None:
        """Give the time since the last switch to the part that runs."""
        now = perf_counter()
        self._seconds[self._running[-1]] += now - self._since
        self._since = now


class _Block(contextlib.ContextDecorator):
    """`Clock.part`; it may be entered again while it runs."""

    def __init__(self, clock: Clock, part: str) -> None:
        self._clock, self._part = clock, part

    def __enter__(self) -> None:
        self._clock.enter(self._part)

    def __exit__(self, *error: object) -> None:
        self._clock.leave()


clock = Clock()
