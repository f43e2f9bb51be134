"""The runs of a stack from their configs to their results, each with the directory, loggers and locks of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import lightning

from li2_lightning.clock import clock
from li2_lightning.config.schema import Config
from li2_lightning.data import TableDataModule
from li2_lightning.errors import Interrupted
from li2_lightning.module import Li2Module
from li2_lightning.runs.checkpoints import Start
from li2_lightning.runs.directory import RunDirectory, RunResult
from li2_lightning.runs.wandb import logging_to, wandb_mode
from li2_lightning.sweeps.stack import JoinOptimizers, Member, Stack
from li2_lightning.trainer import build_trainer, quiet_lightning, stopping_on_signals

# Builds the Trainer, the module and the data of a run whose directory is the second argument.
Assemble = Callable[[Config, RunDirectory], tuple[lightning.Trainer, Li2Module, TableDataModule]]
Outcome = RunResult | Exception


class Together:
    """Trains runs of one kind (`li2_lightning.sweeps.stacking.kind`) in one process.

    Args:
        assemble: builds a run.
        join: makes one step of the optimizers of several runs (`optimizers.joint.JointStep`).
        ended: called with the place of a run and its outcome as soon as the run has ended.
    """

    def __init__(
        self, assemble: Assemble, join: JoinOptimizers, ended: Callable[[int, Outcome], None] | None = None
    ) -> None:
        self._assemble, self._join, self._ended = assemble, join, ended

    def train(self, configs: Sequence[Config]) -> list[Outcome]:
        """The result of each run, or the error by which it ended; a finished run is not repeated.

        Raises:
            Interrupted: SIGINT or SIGTERM; the checkpoints of all runs hold their state.
        """
        runs = [_Run(place, config, self._report) for place, config in enumerate(configs)]
        # Each run of a stack counts the time of the whole stack.
        clock.begin()
        with quiet_lightning():
            for run in runs:
                run.begin(self._assemble)
            # Runs at different rows, as a kill leaves them, take their steps in stacks of their own.
            for row in sorted({run.row for run in runs if run.member is not None}):
                self._fit([run for run in runs if run.row == row])
        return [run.outcome for run in runs if run.outcome is not None]

    def _fit(self, runs: Sequence[_Run]) -> None:
        members = [run.member for run in runs if run.member is not None]
        config, data = runs[0].config, members[0].data
        rows = f"{len(data.train)} training and {len(data.test)} test rows"
        print(f"{data.task.name}: {rows}, {data.task.num_classes} classes, a stack of {len(members)} runs", flush=True)
        driver = build_trainer(config, runs[0].directory.path, [])
        stack = Stack(members, self._join)
        try:
            with stopping_on_signals(stack):
                stack.begin([run.checkpoint for run in runs if run.member is not None], driver.fit_loop)
                if stack.runs:
                    driver.fit(stack)
        except BaseException as error:
            stack.stop(error)
            if not isinstance(error, Exception) or isinstance(error, Interrupted):
                raise

    def _report(self, place: int, outcome: Outcome) -> None:
        if self._ended is not None:
            self._ended(place, outcome)


class _Run:
    """One run of a stack, with the contexts (lock, loggers, summary) that its end closes."""

    def __init__(self, place: int, config: Config, ended: Callable[[int, Outcome], None]) -> None:
        self.place, self.config, self._ended = place, config, ended
        self.directory = RunDirectory.of(config)
        self.member: Member | None = None
        self.outcome: Outcome | None = None
        self._contexts = ExitStack()
        self._start: Start | None = None

    @property
    def checkpoint(self) -> Any:
        """The file from which the run continues, or None."""
        return None if self._start is None else self._start.checkpoint

    @property
    def row(self) -> int:
        """The number of updates before this process; −1 where the run does not train."""
        if self.member is None:
            return -1
        return 0 if self._start is None else self._start.step

    def begin(self, assemble: Assemble) -> None:
        """Decide, assemble and lock, in the order of a run by itself; an error ends this run alone."""
        config, directory = self.config, self.directory
        try:
            decision = directory.decide(config)
            if decision.stored is None:
                trainer, module, data = assemble(config, directory)
                mode = wandb_mode(config)
                decision = self._contexts.enter_context(directory.locked(config, decision))
            if decision.stored is not None:
                self._contexts.close()
                return self._end(RunResult(directory.path, decision.stored, stored=True))
            self._start = decision.start
            self._contexts.enter_context(logging_to(trainer, config, directory.path, mode, self._start))
            first = 0 if self._start is None else self._start.row
            self._contexts.enter_context(directory.summarizing(config, first))
            self.member = Member(trainer, module, data, self.finish)
        except Exception as error:
            self.finish(error)

    def finish(self, error: Exception | None) -> None:
        """Write the summary, close the loggers and unlock the directory; ``error`` ended the run."""
        try:
            if error is not None and not self._contexts.__exit__(type(error), error, error.__traceback__):
                raise error
            self._contexts.close()
            self._end(RunResult(self.directory.path, self.directory.close(), stored=False))
        except Exception as final:
            self._end(final)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._ended(self.place, outcome)
