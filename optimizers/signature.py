"""What the user wrote, made to fit the signature of the callable it is for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimizers.errors import OptimizerError, nearest

Parameters = dict[str, inspect.Parameter]


def hyperparameters(factory: Callable[..., Any]) -> tuple[Parameters, bool]:
    """The named parameters after the first (which is ours), and whether ``**kwargs`` takes any other."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (ValueError, TypeError):  # some callables written in C have no signature
        return {}, True
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return {p.name: p for p in parameters[1:] if p.kind in named}, is_open


def accepts(factory: Callable[..., Any], name: str) -> bool:
    """Whether ``factory`` takes a hyperparameter called ``name``."""
    parameters, is_open = hyperparameters(factory)
    return is_open or name in parameters


def own_default(factory: Callable[..., Any], name: str) -> float | None:
    """The number that ``factory`` takes for a hyperparameter by itself; None where its signature does not tell one."""
    parameters, _ = hyperparameters(factory)
    default = parameters[name].default if name in parameters else None
    return default if isinstance(default, int | float) and not isinstance(default, bool) else None


def fit(factory: Callable[..., Any], given: Mapping[str, Any], what: str, section: str) -> dict[str, Any]:
    """``given`` as keyword arguments for ``factory``.

    Args:
        factory: a callable whose first parameter is ours and whose others are the user's.
        given: what the user wrote. Lists become tuples where the default is a tuple; a string that reads as a
            number becomes one unless the default is a string (in YAML 1.1, ``1e-3`` is a string).
        what: what ``factory`` is called in messages.
        section: where ``given`` stands in the config, for messages.

    Raises:
        OptimizerError: an unknown or missing name (shows the signature), or a value of the wrong kind.
    """
    parameters, is_open = hyperparameters(factory)
    shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters.values())
    takes = f"it takes {shown}" if shown else "it takes none"
    for name in given:
        if not is_open and name not in parameters:
            raise OptimizerError(
                f"{section}: {what} has no hyperparameter {name!r}; {takes}.{nearest(name, parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise OptimizerError(f"{section}: {what} needs a value for {name!r}; {takes}.")
    defaults = {name: p.default for name, p in parameters.items()}
    return {
        name: _convert(value, defaults.get(name, inspect.Parameter.empty), f"{section}.{name}")
        for name, value in given.items()
    }


def beyond_defaults(factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that ``factory`` does not have as its defaults."""
    parameters, _ = hyperparameters(factory)
    return {name: v for name, v in given.items() if name not in parameters or v != parameters[name].default}


def _convert(value: Any, default: Any, key: str) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(default):
            raise OptimizerError(f"{key}={value!r} must be a list of {len(default)} values, like {list(default)}.")
        return tuple(_convert(v, d, key) for v, d in zip(value, default, strict=True))
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise OptimizerError(f"{key}={value!r} must be true or false.")
        return value
    is_number = isinstance(default, int | float)
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = float(value)
        except ValueError:
            if is_number:
                raise OptimizerError(f"{key}={value!r} must be a number, like {default!r}.") from None
            return value
        if not isinstance(default, float) and value.is_integer():
            value = int(value)
    if is_number and (isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))):
        raise OptimizerError(f"{key}={value!r} must be a finite number, like {default!r}.")
    return value
