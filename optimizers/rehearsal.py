"""Steps on copies before the run: an optimizer that cannot step or resume is refused before training."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from li2_lightning.errors import InputError, reason
from optimizers.composite import CompositeOptimizer
from optimizers.modes import switch
from optimizers.registry import SECOND_ORDER
from optimizers.roles import NamedParameters


def rehearse(
    build: Callable[[Mapping[str, NamedParameters]], CompositeOptimizer], parameters: Mapping[str, NamedParameters]
) -> None:
    """Step on copies of the parameters with small random gradients, save, load, and step again.

    Gradients have a generator of their own. An optimizer may draw from the global random streams; a caller that needs
    these unchanged saves their state first.

    Args:
        build: makes the optimizer that the run will have, as `build_optimizer` does with its config.
        parameters: role -> pairs of name and parameter; these are not changed.

    Raises:
        InputError: a step fails, or the state does not come back from a checkpoint; names the role, the
            optimizer, and the entry of the state.
    """
    generator = torch.Generator().manual_seed(0)
    copies = {
        role: [(name, Parameter(p.detach().clone(), p.requires_grad)) for name, p in named]
        for role, named in parameters.items()
    }
    composite = build(copies)
    for role, child in composite.children.items():
        alone = CompositeOptimizer({role: child}, {role: composite.names[role]})
        called = f"optimizer.{role}: {composite.names[role]}"
        _step(alone, generator, called)
        try:
            switch([alone], "eval")
            _reload(alone)
        except Exception as error:  # torch, pickle and foreign code may raise anything, here and below
            message = f"{called} cannot be continued from a checkpoint: {reason(error)}; choose another optimizer."
            raise InputError(message) from error
        if all(bool(p.isfinite().all()) for group in alone.param_groups for p in group["params"]):
            _step(alone, generator, called, " after a checkpoint")


def _reload(optimizer: CompositeOptimizer) -> None:
    saved = optimizer.state_dict()
    try:
        restored = _through_a_file(saved)
    except Exception as error:
        (_, _, *path), value = _offender(saved)  # within the state of one child
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise InputError(
            f"{'.'.join(path) or 'its state'} is a {kind}, and a file that is read as data holds only tensors, "
            "numbers, strings, and lists, tuples and dicts of these"
        ) from error
    optimizer.load_state_dict(restored)


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


def _offender(value: Any, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Any]:
    """The keys that lead to the innermost value that does not survive, and the value."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        entries = [(key, part) for key, entry in value.items() for part in (key, entry)]
    elif isinstance(value, list | tuple):
        entries = list(enumerate(value))
    for key, entry in entries:
        if not _survives(entry):
            return _offender(entry, (*path, str(key)))
    return path, value


def _step(optimizer: Optimizer, generator: torch.Generator, called: str, when: str = "") -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = 1e-3 * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
    try:
        switch([optimizer], "train")
        optimizer.step()
    except Exception as error:
        # The learning rate is too large, not the optimizer wrong: the run will report that it diverges.
        if "without overflow" in str(error):
            return
        if "does not require grad" in str(error):
            raise InputError(f"{called} {SECOND_ORDER}.") from error
        raise InputError(f"{called} cannot step{when} on these weights: {reason(error)}.") from error
