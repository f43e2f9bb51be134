"""One step of the optimizers of several runs, in a single call where the class of an optimizer allows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from li2_lightning.plugins import takes_stacks
from optimizers.composite import CompositeOptimizer, JointState

# Entries of a parameter group that belong to its parameters; the other entries are its hyperparameters.
BY_PARAMETER = ("params", "param_names", "layouts")


class JointStep:
    """Steps the optimizers of several runs.

    Optimizers of one role are stepped together if each parameter group is updated by itself, so that one object with
    the groups of all runs makes the steps of all. That is so for torch's optimizers that are ``fused``, and for a class
    that sets ``takes_stacks``. Every optimizer keeps its own groups and state. Any other optimizer, and one with hooks,
    makes its own step.

    Args:
        optimizers: one of each run, all with the same roles.
        alone: called with the position of a run and a step of its own; it makes the step and handles its error.
    """

    def __init__(
        self, optimizers: Sequence[CompositeOptimizer], alone: Callable[[int, Callable[[], Any]], None]
    ) -> None:
        self._step_alone = alone
        self._together: list[Optimizer] = []
        self._alone: list[tuple[int, Callable[[], Any]]] = []
        whole = [position for position, optimizer in enumerate(optimizers) if _has_hooks(optimizer)]
        self._alone += [(position, optimizers[position].step) for position in whole]
        others = [position for position in range(len(optimizers)) if position not in whole]
        for role in optimizers[0].children:
            children = [optimizers[position].children[role] for position in others]
            if len(children) > 1 and _step_together(children):
                self._together.append(_joined(children))
            else:
                self._alone += [(place, child.step) for place, child in zip(others, children, strict=True)]

    def step(self) -> None:
        """Step the optimizer of every run."""
        for optimizer in self._together:
            groups = optimizer.param_groups
            optimizer.param_groups = _merged(groups)
            try:
                optimizer.step()
            finally:
                optimizer.param_groups = groups
        for position, step in self._alone:
            self._step_alone(position, step)


def _has_hooks(optimizer: Optimizer) -> bool:
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def _step_together(children: Sequence[Optimizer]) -> bool:
    first = children[0]
    if any(type(child) is not type(first) or _has_hooks(child) for child in children):
        return False
    if takes_stacks(type(first)):
        return True
    groups = [group for child in children for group in child.param_groups]
    # A rate beyond float32 makes the step of its run fail, which must not end the step of the others.
    return type(first).__module__.startswith("torch.optim.") and all(
        group.get("fused") and float(group["lr"]) < torch.finfo(torch.float32).max / 1e6 for group in groups
    )


def _joined(children: Sequence[Optimizer]) -> Optimizer:
    """An optimizer with the groups and the states of several, without a copy of either."""
    joined = object.__new__(type(children[0]))
    joined.__dict__.update(vars(children[0]))
    joined.param_groups = [group for child in children for group in child.param_groups]
    joined.state = JointState({str(place): child for place, child in enumerate(children)})  # type: ignore[assignment]
    return joined


def _merged(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of equal hyperparameters as one group."""
    merged: dict[Any, dict[str, Any]] = {}
    for group in groups:
        # A tuple of betas is hashable, and so is a tensor, by its identity.
        key = tuple((name, value) for name, value in group.items() if name not in BY_PARAMETER)
        if key not in merged:
            merged[key] = {**group, **{name: list(group[name]) for name in BY_PARAMETER if name in group}}
        else:
            for name in BY_PARAMETER:
                if name in group:
                    merged[key][name] += group[name]
    return list(merged.values())
