"""Several runs trained together: their weights have a leading axis, and one loop takes a step of all of them.

Each run of a stack has its own `Li2Module`, data, optimizer, schedule, callbacks, loggers and directory, and a Trainer
that holds them. Its parameters are slices of the parameters of the stack (`li2_lightning.networks.base.stacked`), so
every part of a run finds its own weights and gradients where it expects them. The runs share the forward and the
backward pass, the measurement of a row, the transfer of rows to the host, and the step of optimizers that allow it
(`optimizers.joint`).

A run leaves the stack when it ends, diverges, or fails; the stack gets smaller, and the other runs go on.
"""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from li2_lightning._compat import (
    begin_fit,
    call_gradient_hooks,
    count_as_stepped,
    end_fit,
    has_gradient_hooks,
    is_step_overflow,
)
from li2_lightning.clock import clock
from li2_lightning.data import Rows, TableDataModule
from li2_lightning.errors import Interrupted
from li2_lightning.measurement.passes import Passes
from li2_lightning.measurement.rows import call_hook, rows_to_host
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.base import Network, stacked
from li2_lightning.plugins import takes_stacks
from li2_lightning.seeds import random_state, set_random_state

# The hooks of a step that Lightning calls on callbacks.
STEP_HOOKS = (
    "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end",
)  # fmt: skip

# The number of lines that tell the progress of a stack.
LINES = 10
# Packages whose code draws no random numbers from the global sources while it trains.
OURS = ("li2_lightning", "callbacks", "optimizers", "benchmarks", "lightning", "torch")

# Makes one object that steps the optimizers of several runs. The second argument makes the step of a run whose
# optimizer cannot be joined: a function of the place of the run and of that step.
JoinOptimizers = Callable[[list[Any], Callable[[int, Callable[[], Any]], None]], Any]


@dataclass
class Member:
    """One run of a stack.

    Attributes:
        trainer: holds the run's callbacks, loggers and directory; it does not loop itself.
        module, data: the run's.
        finish: called once, when the run has left the stack, with the error that ended it, if any.
        random_state: of the global sources of random numbers, at first after the run was built. Code from outside this
            project may draw from these sources; around such code they have the state of the run.
        batches: the rows of each further step.
        batch: the rows of the present step.
        accuracy: on the test rows, of the newest row.
        error: the error for which the run leaves the stack at the end of the present step.
        hooks: for each hook of a step, the functions of the run's callbacks, and whether they may draw random numbers.
    """

    trainer: lightning.Trainer
    module: Li2Module
    data: TableDataModule
    finish: Callable[[Exception | None], None]
    random_state: dict[str, Any] = field(default_factory=random_state)
    batches: Iterator[Rows] = field(default_factory=lambda: iter(()))
    batch: Rows | None = None
    accuracy: float | None = None
    error: Exception | None = None
    hooks: dict[str, list[tuple[Callable[..., None], bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        for name in (*STEP_HOOKS, "on_train_start"):
            base = getattr(lightning.Callback, name)
            own = [callback for callback in callbacks if getattr(type(callback), name) is not base]
            self.hooks[name] = [(getattr(callback, name), may_draw(callback)) for callback in own]
        self.callbacks_draw = any(map(may_draw, callbacks))
        optimizers: list[Any] = list(self.module.optimizer.children.values())  # type: ignore[attr-defined]
        for optimizer in optimizers:
            optimizers += [optimizer.inner] if hasattr(optimizer, "inner") else []
        self.updates_draw = any(map(may_draw, [*optimizers, self.module.scheduler]))


def may_draw(part: Any) -> bool:
    """Whether a part of a run is from outside this project and its libraries, so that it may draw random numbers."""
    return part is not None and type(part).__module__.partition(".")[0] not in OURS


class Stack(lightning.LightningModule):
    """The module of the Trainer whose loop drives all runs of a stack.

    Args:
        members: runs of one kind (`li2_lightning.sweeps.stacking.kind`) that stand at the same row.
        join: `optimizers.joint.JointStep`.
    """

    def __init__(self, members: list[Member], join: JoinOptimizers) -> None:
        super().__init__()
        self._members, self._join = list(members), join
        self._state: StepState | None = None
        self._next_line = 0
        self.stop_signal: int | None = None
        self.signal_handlers: dict[int, Any] = {}

    @property
    def runs(self) -> int:
        """The number of runs that are left."""
        return len(self._members)

    # -- beginning and end of the runs ------------------------------------------------------------------------------

    def begin(self, checkpoints: list[Any], loop: Any) -> None:
        """Let every run begin, or continue from its checkpoint.

        Args:
            checkpoints: of each run the file, or None.
            loop: the ``fit_loop`` of the Trainer that drives the stack.
        """
        for place, (member, checkpoint) in enumerate(zip(list(self._members), checkpoints, strict=True)):
            try:
                # All runs would print the same lines; their warnings are on stderr.
                with redirect_stdout(io.StringIO()) if place else nullcontext():
                    begin_fit(member.trainer, member.module, member.data, checkpoint, loop)
            # The error of one run, whatever it is, ends this run alone.
            except Exception as error:
                self._leave(member, error)
        self._assemble()

    def _assemble(self) -> None:
        """Join the weights, the rows and the optimizers of the runs that are left."""
        if not self._members:
            return
        modules = [member.module for member in self._members]
        networks = [module.network for module in modules]
        # In a tuple: a module as an attribute would become a part of this one.
        self._network: tuple[Network] = (stacked(networks),)
        self._parts = [
            (whole, [network.get_parameter(name) for network in networks])
            for name, whole in self._network[0].named_parameters()
            if whole.requires_grad
        ]
        ridge = None
        if modules[0].ridge is not None:
            strengths = [[float(module.ridge or 0)] for module in modules]
            ridge = torch.tensor(strengths, dtype=torch.float64, device=networks[0].V.device)
        self._rows = _StackedRows([member.data for member in self._members])
        self._passes = Passes(
            self._network[0],
            modules[0].loss,
            self._rows,
            self._members[0].trainer.precision_plugin.train_step_context,
            ridge,
            runs=len(modules),
        )
        self._swaps = any(member.callbacks_draw or member.updates_draw for member in self._members)
        self._optimizers = self._join([module.optimizer for module in modules], self._step_alone)
        for module in modules:
            module.position.together = len(modules)
            count_as_stepped(module.optimizer)
        of_each: list[list[Any]] = [member.trainer.callbacks for member in self._members]  # type: ignore[attr-defined]
        self._callbacks: list[tuple[Any, ...]] = list(zip(*of_each, strict=True))
        for callbacks in self._callbacks:
            if hasattr(callbacks[0], "join"):
                callbacks[0].join(callbacks, self._network[0])

    def _leave(self, member: Member, error: Exception | None) -> None:
        """End a run: its last row, the hooks of its callbacks, its files."""
        self._members.remove(member)
        try:
            if error is None:
                member.module.end()
            end_fit(member.trainer, error)
        except Exception as failure:
            if error is None:
                end_fit(member.trainer, failure)
            error = error or failure
        member.finish(error)

    def _let_go(self) -> None:
        """End the runs that have failed or were asked to stop, and go on with a smaller stack."""
        leaving = [member for member in self._members if member.error or member.trainer.should_stop]
        for member in leaving:
            self._leave(member, member.error)
        if leaving:
            self._assemble()
            # The end of a run has changed the part that the clock counts; the other runs go on with their steps.
            clock.phase("steps")
        self.trainer.should_stop = not self._members

    def _guard(self, member: Member, draws: bool, call: Callable[..., Any], *args: Any) -> None:
        """Call a function of a run that has not failed; its error ends this run alone.

        Args:
            draws: the function may draw from the global sources of random numbers, which are then those of the run.
        """
        if member.error is None:
            try:
                with _random_numbers_of(member) if draws else nullcontext():
                    call(*args)
            except Interrupted:
                raise
            except Exception as error:
                member.error = error

    def call(self, hook: str, *args: Callable[[Member], Any]) -> None:
        """Call a hook of Lightning on the callbacks of every run, each with its own Trainer, module and arguments."""
        for member in self._members:
            for function, draws in member.hooks[hook]:
                self._guard(member, draws, function, member.trainer, member.module, *(arg(member) for arg in args))

    # -- Lightning's hooks ------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer:
        return _Updates(self)

    def train_dataloader(self) -> Iterator[int]:
        # Rows are taken when a step begins, since the stack may have become smaller.
        while True:
            yield 0

    def on_train_start(self) -> None:
        for signum, handler in self.signal_handlers.items():
            signal.signal(signum, handler)
        self.call("on_train_start")
        for member in self._members:
            member.batches = iter(member.data.train_dataloader())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for member in self._members:
            member.batch = next(member.batches)
        self.call("on_train_batch_start", lambda member: member.batch, lambda member: batch_idx)
        before = random_state()
        for member in self._members:
            member.module.position.random_state = member.random_state if self._swaps else before

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first, step = self._members[0].module, self.global_step
        due = first.is_due() and not first.has_eval_point
        for member in self._members:
            member.module.to_train_point()
        is_full = first.data.is_full_batch
        batches = [] if is_full else [member.batch for member in self._members if member.batch is not None]
        rows = self._rows.train_share if is_full else Rows.stacked(batches)
        losses, self._state = self._passes.train(rows, is_full, step if due else None)
        return losses.sum() / rows.total

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        for whole, _ in self._parts:
            whole.grad = None

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        self.call("on_before_zero_grad", lambda member: member.module.optimizer)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.call("on_before_backward", lambda member: loss)
        super().backward(loss, *args, **kwargs)
        for whole, parts in self._parts:
            gradients = whole.grad.unbind() if whole.grad is not None else [None] * len(parts)
            for part, gradient in zip(parts, gradients, strict=True):
                if gradient is not None and has_gradient_hooks(part):
                    gradient = call_gradient_hooks(part, gradient)
                part.grad = gradient
        first = self._members[0].module
        if first.has_eval_point:
            for member in self._members:
                member.module.to_eval_point()
            self._state = self._passes.row(self.global_step if first.is_due() else None)
        if self._state is not None:
            state, self._state = self._state, None
            state.readout_gradient = first.readout_gradient(self._network[0])
            self._publish(state)
            if any(member.module.rows_are_due for member in self._members):
                self._hand_over()
        self._obey()
        self.call("on_after_backward")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.call("on_before_optimizer_step", lambda member: member.module.optimizer)
        for member in self._members:
            member.module.to_train_point()

    def update(self) -> None:
        """Make the update of every run."""
        self._optimizers.step()
        self._network[0].normalize()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for member in self._members:
            if member.module.scheduler is not None:
                self._guard(member, member.updates_draw, member.module.scheduler.step)
        self.call("on_train_batch_end", lambda member: outputs, lambda member: member.batch, lambda member: batch_idx)
        if self.global_step < self.trainer.max_steps or any(member.error for member in self._members):
            self._let_go()

    def on_train_epoch_end(self) -> None:
        measured = [member for member in self._members if member.module.before_last_row()]
        if measured:
            state = self._passes.measure(self.global_step)
            state.is_last = True
            self._publish(state)
            self._hand_over()
        for member in list(self._members):
            self._leave(member, member.error)

    # -- rows -------------------------------------------------------------------------------------------------------

    def _publish(self, whole: StepState) -> None:
        """Let the callbacks of every run add their columns, and queue the rows."""
        states = whole.split([member.module.network for member in self._members])
        modules = [member.module for member in self._members]
        with clock.part("rows"):
            for callbacks in self._callbacks:
                self._measure(callbacks, modules, whole, states)
        for member, state in zip(self._members, states, strict=True):
            self._guard(member, False, member.module.queue, state)

    def _measure(
        self, callbacks: Sequence[Any], modules: Sequence[Li2Module], whole: StepState, states: Sequence[StepState]
    ) -> None:
        """Call ``on_step_state`` of the callbacks at one place of every run, at once where the class allows it."""
        first = callbacks[0]
        if takes_stacks(type(first)):
            try:
                first.on_stack_state(callbacks, modules, whole, states)
            except Exception as error:
                for member in self._members:
                    member.error = member.error or error
        elif hasattr(first, "on_step_state"):
            part, draws = getattr(first, "part", None), may_draw(first)
            with nullcontext() if part is None else clock.part(part):
                for member, callback, state in zip(self._members, callbacks, states, strict=True):
                    self._guard(member, draws, callback.on_step_state, member.trainer, member.module, state)

    def _hand_over(self) -> None:
        """Give every run its waiting rows, after one transfer for all."""
        waiting = [member.module.take_waiting() for member in self._members]
        rows = iter(rows_to_host([row for own in waiting for row in own]))
        for member, own in zip(self._members, waiting, strict=True):
            received = [next(rows) for _ in own]
            self._guard(member, member.callbacks_draw, member.module.receive, received)
            if received:
                member.accuracy = received[-1].get("test/accuracy")
        self._show_progress()

    def _show_progress(self) -> None:
        """Print a line at every tenth of the steps."""
        step, last = max(member.module.last_row for member in self._members), self.trainer.max_steps
        if step < self._next_line:
            return
        spacing = max(1, last // LINES)
        self._next_line = (step // spacing + 1) * spacing
        known = [member.accuracy for member in self._members if member.accuracy is not None]
        ends = dict.fromkeys(f"{end:.3f}" for end in (min(known), max(known))) if known else {}
        accuracy = f"  test accuracy {' to '.join(ends)}" if ends else ""
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        print(f"step {step}/{last}  {runs}{accuracy}", flush=True)

    def _obey(self) -> None:
        for member in self._members:
            member.module.obey(None)
        if self.stop_signal is not None:
            self._hand_over()
            for member in self._members:
                self._guard(member, member.callbacks_draw, call_hook, member.trainer, "on_interrupt", member.module)
            raise Interrupted.by(self.stop_signal)

    def _step_alone(self, place: int, step: Callable[[], Any]) -> None:
        """Make the step of an optimizer that is not joined with those of other runs."""
        member = self._members[place]
        self._guard(member, member.updates_draw, step)
        if isinstance(member.error, RuntimeError) and is_step_overflow(member.error):
            member.error = member.module.overflow()

    def stop(self, error: BaseException) -> None:
        """End every run that is left with the error that ended the loop."""
        for member in list(self._members):
            cause = error if isinstance(error, Exception) else Interrupted(signal.SIGINT, "Stopped.")
            self._leave(member, cause)


@contextmanager
def _random_numbers_of(member: Member) -> Iterator[None]:
    """Let the global sources of random numbers be those of one run."""
    set_random_state(member.random_state)
    try:
        yield
    finally:
        member.random_state = random_state()


class _StackedRows:
    """The rows of all runs of a stack (`li2_lightning.measurement.passes.SplitRows`)."""

    def __init__(self, parts: list[TableDataModule]) -> None:
        self.task = parts[0].task
        self.train = self.train_share = Rows.stacked([part.train for part in parts])
        self.test_share = Rows.stacked([part.test for part in parts])


class _Updates(Optimizer):
    """Lightning's view of the optimizers of a stack: a step evaluates the closure and updates every run."""

    def __init__(self, stack: Stack) -> None:
        self._stack = (stack,)
        super().__init__([torch.zeros(())], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._stack[0].update()
        return result
