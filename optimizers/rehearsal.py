"""A step before the run: an optimizer that cannot step, or go on from a checkpoint, is refused before training."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from optimizers.composite import CompositeOptimizer
from optimizers.errors import OptimizerError, reason
from optimizers.modes import switch
from optimizers.registry import SECOND_ORDER
from optimizers.roles import NamedParameters


def rehearse(
    build: Callable[[Mapping[str, NamedParameters]], CompositeOptimizer], parameters: Mapping[str, NamedParameters]
) -> None:
    """Step on copies of the parameters with small random gradients, save, load, and step again.

    Gradients have a generator of their own. An optimizer may draw from the global sources of random numbers; whoever
    needs these as they were keeps their state.

    Args:
        build: makes the optimizer that the run will have, as `build_optimizer` does with its config.
        parameters: role -> pairs of name and parameter; these are not changed.

    Raises:
        OptimizerError: a step fails, or the state does not come back from a checkpoint; names the role, the
            optimizer, and the entry of the state.
    """
    generator = torch.Generator().manual_seed(0)
    composite = build({role: [(name, _copy(p)) for name, p in named] for role, named in parameters.items()})
    for role, child in composite.children.items():
        called = f"optimizer.{role}: {composite.names[role]}"
        _step(child, generator, called)
        switch([child], "eval")
        saved = child.state_dict()
        try:
            restored = _through_a_file(saved)
        except Exception as error:  # torch, pickle and the values themselves raise many kinds, here and below
            path, value = _offender(saved)
            raise OptimizerError(
                f"{called} keeps {path} as a {type(value).__module__}.{type(value).__qualname__}, and a checkpoint "
                "holds only tensors, numbers, strings, and lists, tuples and dicts of these; choose another optimizer."
            ) from error
        try:
            child.load_state_dict(restored)
        except Exception as error:
            raise OptimizerError(f"{called} cannot be continued from a checkpoint: {reason(error)}.") from error
        _step(child, generator, called, " after a checkpoint")


def _through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _survives(value: Any) -> bool:
    try:
        _through_a_file(value)
    except Exception:
        return False
    return True


def _offender(value: Any, path: tuple[str, ...] = ()) -> tuple[str, Any]:
    """Where the innermost value stands that does not survive, and the value."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        entries = [(key, part) for key, entry in value.items() for part in (key, entry)]
    elif isinstance(value, list | tuple):
        entries = list(enumerate(value))
    for key, entry in entries:
        if not _survives(entry):
            return _offender(entry, (*path, str(key)))
    return ".".join(path), value


def _copy(parameter: Parameter) -> Parameter:
    return Parameter(parameter.detach().clone(), parameter.requires_grad)


def _step(optimizer: Optimizer, generator: torch.Generator, called: str, when: str = "") -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = _small_noise(p, generator)
    try:
        switch([optimizer], "train")
        optimizer.step()
    except Exception as error:
        if "does not require grad" in str(error):
            raise OptimizerError(f"{called} {SECOND_ORDER}.") from error
        raise OptimizerError(f"{called} cannot step{when} on these weights: {reason(error)}.") from error


def _small_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return 1e-3 * torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
