"""Learning-rate schedules: a factor for each update, the same for every role's own learning rate.

Each schedule is a function of ``max_steps`` and the user's hyperparameters and returns the factor as a
function of t, the updates made so far: update t+1 uses lr·factor(t). One scheduler step is one update.
A run that continues takes the factors of its own ``max_steps``, from the first update on.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from li2_lightning.errors import InputError
from li2_lightning.plugins import Registry, beyond_defaults, identifies

Factor = Callable[[int], float]

SCHEDULES: Registry[Callable[..., Factor]] = Registry("scheduler", "li2_lightning.schedules", makes=Callable)


@SCHEDULES.register("none")
def none(max_steps: int) -> Factor:
    """1."""
    return lambda t: 1.0


@SCHEDULES.register("step")
def step(max_steps: int, step_size: int, gamma: float = 0.1) -> Factor:
    """γ^⌊t/step_size⌋."""
    _require("step_size", step_size, _is_count(step_size, 1), "a whole number from 1 on")
    _check_gamma(gamma)
    return lambda t: float(gamma ** (t // step_size))


@SCHEDULES.register("multistep")
def multistep(max_steps: int, milestones: Sequence[int], gamma: float = 0.1) -> Factor:
    """γ^(number of milestones ≤ t)."""
    is_list = isinstance(milestones, Sequence) and not isinstance(milestones, str)
    is_valid = is_list and len(milestones) > 0 and all(_is_count(m, 1) for m in milestones)
    _require("milestones", milestones, is_valid, "a list of whole numbers from 1 on, like [100, 200]")
    _check_gamma(gamma)
    ordered = sorted(milestones)
    return lambda t: float(gamma ** bisect_right(ordered, t))


@SCHEDULES.register("exponential")
def exponential(max_steps: int, gamma: float) -> Factor:
    """γ^t."""
    _check_gamma(gamma)
    return lambda t: float(gamma**t)


@SCHEDULES.register("cosine")
def cosine(max_steps: int, final_fraction: float = 0.0, warmup_steps: int = 0) -> Factor:
    """(t+1)/w in the first w updates, then f + (1−f)·½(1 + cos πs), s from 0 at t = w to 1 at max_steps."""
    _require("final_fraction", final_fraction, 0 <= final_fraction <= 1, "between 0 and 1")
    _require("warmup_steps", warmup_steps, _is_count(warmup_steps, 0), "a whole number from 0 on")
    if warmup_steps and warmup_steps >= max_steps:
        raise InputError(f"scheduler.warmup_steps={warmup_steps} must be below max_steps={max_steps}.")

    def factor(t: int) -> float:
        if t < warmup_steps:
            return (t + 1) / warmup_steps
        s = min(1.0, (t - warmup_steps) / max(1, max_steps - warmup_steps))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * s))

    return factor


@SCHEDULES.register("linear_warmup")
def linear_warmup(max_steps: int, warmup_steps: int) -> Factor:
    """min(1, (t+1)/w): the first update uses lr/w, the w-th and all later ones lr."""
    _require("warmup_steps", warmup_steps, _is_count(warmup_steps, 1), "a whole number from 1 on")
    return lambda t: min(1.0, (t + 1) / warmup_steps)


# The schedules of ours whose factor depends on max_steps.
WITH_LENGTH = ("cosine",)


class Schedule(LambdaLR):
    """lr·factor(t) for every group, also right after a state has been loaded.

    torch would keep the learning rates of the loaded optimizer. They belong to the ``max_steps`` of the checkpoint: at
    the end of a cosine they are zero.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore t and the base learning rates; load the optimizer's own state first."""
        super().load_state_dict(state_dict)
        groups = zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True)
        for group, lr, factor in groups:
            now = lr * factor(self.last_epoch)
            group["lr"] = group["lr"].fill_(now) if isinstance(group["lr"], Tensor) else now
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def knows_length(config: Mapping[str, Any]) -> bool:
    """Whether the schedule that a ``scheduler`` section names depends on ``max_steps``."""
    return config.get("name") in WITH_LENGTH


def build_scheduler(optimizer: Optimizer, config: Mapping[str, Any], max_steps: int) -> LRScheduler | None:
    """The scheduler that ``config`` names, to be stepped once after every optimizer update.

    Args:
        optimizer: the factors multiply the present learning rates of its groups.
        config: ``name`` of a schedule and its options.
        max_steps: where ``cosine`` ends.

    Returns:
        None for ``none``.

    Raises:
        InputError: an unknown name or option, a value out of its range, an optimizer without lr.
    """
    name, given = _read(config)
    if name == "none":
        if given:
            others = ", ".join(other for other in SCHEDULES if other != name)
            raise InputError(f"scheduler.{next(iter(given))} needs a schedule; set scheduler.name to one of {others}.")
        return None
    without = dict.fromkeys(group.get("role", "this") for group in optimizer.param_groups if group.get("lr") is None)
    if without:
        raise InputError(
            f"scheduler.name={name} sets learning rates, and the {', '.join(without)} optimizer has none; "
            "set scheduler.name=none or choose another optimizer."
        )
    # LambdaLR leaves plain functions out of its state, so a checkpoint holds numbers only.
    return Schedule(optimizer, SCHEDULES.build(name, "scheduler", given, max_steps))


@identifies("scheduler")
def scheduler_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a ``scheduler`` section that counts: the name, and the options that are not its defaults.

    A section that cannot be built is left as it is; `build_scheduler` refuses it.

    Args:
        config: as for `build_scheduler`.
    """
    name, given = _read(config)
    try:
        schedule = SCHEDULES.find(name)
        return {"name": name, **beyond_defaults(schedule, SCHEDULES.fit(name, schedule, given, "scheduler", 1))}
    except InputError:
        return dict(config)


def _read(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The name that a ``scheduler`` section gives, and the hyperparameters."""
    return config.get("name"), {key: value for key, value in config.items() if key != "name"}


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_gamma(gamma: Any) -> None:
    _require("gamma", gamma, isinstance(gamma, int | float) and 0 < gamma <= 1, "above 0 and at most 1")


def _require(name: str, value: Any, is_valid: bool, allowed: str) -> None:
    if not is_valid:
        raise InputError(f"scheduler.{name}={value!r} must be {allowed}.")
