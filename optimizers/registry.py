"""Optimizers by name: what a YAML calls ``name`` becomes a ``torch.optim.Optimizer``.

A name is looked up in this order:

1. ``@register("name")`` in any module of ``optimizers/``;
2. an entry point ``name`` of an installed package, in the group ``li2_lightning.optimizers``;
3. an import path ``package.module:Class``;
4. a class of ``torch.optim`` by its lower-case name;
5. a class of the package ``pytorch_optimizer`` by its lower-case name, if that is installed. These see copies of the
   gradients, because many of them write into what they are given.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from optimizers.errors import OptimizerError, nearest, reason
from optimizers.filters.gradient_filter import GradientFilter
from optimizers.signature import accepts, fit

ENTRY_POINT_GROUP = "li2_lightning.optimizers"
EXTRA = "pytorch_optimizer"
SECOND_ORDER = (
    "needs second derivatives of the loss (backward with create_graph=True), and here the first are computed; "
    "choose another optimizer, for example adam"
)

Factory = Callable[..., Optimizer]
F = TypeVar("F", bound=Factory)

_registered: dict[str, Factory] = {}
_modules: dict[str, str] = {}
_broken: dict[str, BaseException] = {}
_from_torch: dict[str, Factory] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}


def register(name: str) -> Callable[[F], F]:
    """Decorator that enters a callable ``(params, **hyperparameters) -> Optimizer`` under ``name``.

    Raises:
        OptimizerError: the name is taken already.
    """
    # Of the factory itself it may be another: functools.partial, or somebody else's class.
    module = sys._getframe(1).f_globals["__name__"]

    def enter(factory: F) -> F:
        if name in _registered:
            raise OptimizerError(
                f"Two optimizers are registered as {name!r}: {_where(_registered[name])} and "
                f"{_where(factory)}; rename one of them."
            )
        _registered[name], _modules[name] = factory, module
        return factory

    return enter


def import_plugin(module: str) -> None:
    """Import a module for its registrations; if that fails, every later `find` says so.

    One broken file must not make ``import optimizers`` a traceback, nor pass in silence.
    """
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        _broken[module] = error


def module_of(name: str) -> str | None:
    """The module that another process must import to know ``name``; None where it finds it by itself."""
    return _modules.get(name) or (name.partition(":")[0] if ":" in name else None)


def registered() -> list[str]:
    """The names entered with `register`, sorted."""
    return sorted(_registered)


def names() -> list[str]:
    """Every name that `find` knows without an import path, sorted."""
    announced = (point.name for point in entry_points(group=ENTRY_POINT_GROUP))
    return sorted({*_registered, *announced, *_from_torch, *_from_extra()})


def listing() -> str:
    """The names for a message: ours, announced ones and torch's first, then those of the optional extra."""
    extra = sorted(_from_extra())
    first = ", ".join(name for name in names() if name not in extra or name in _registered or name in _from_torch)
    return f"{first}, and from {EXTRA} {', '.join(extra)}" if extra else first


def find(name: str) -> Factory:
    """The callable that builds the optimizer called ``name``.

    Raises:
        OptimizerError: unknown name (lists the known ones and the nearest), or a plug-in that does not load.
    """
    for module, error in _broken.items():
        raise OptimizerError(
            f"The plug-in {module} could not be imported: {reason(error)}; repair it or remove the file."
        ) from error
    if name in _registered:
        return _registered[name]
    points = {_announced(point): point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name}
    if len(points) > 1:
        raise OptimizerError(
            f"Two installed packages announce the optimizer {name!r}: {' and '.join(sorted(points))}; uninstall "
            "one of them, or name one by that import path."
        )
    for point in points.values():
        return _load(name, point.load)
    if ":" in str(name):
        return _load(name, lambda: _import_path(name))
    if name in _from_torch:
        return _from_torch[name]
    extra = _from_extra()
    if name in extra:
        return _on_copies(extra[name])
    more = "" if extra else "; pip install 'li2-lightning[optimizers]' adds lion, shampoo, soap and others"
    raise OptimizerError(
        f"Unknown optimizer {name!r}; known are {listing()}, or an import path package.module:Class{more}."
        f"{nearest(str(name), names())}"
    )


def resolve(
    name: str, hyperparameters: Mapping[str, Any], shared: Mapping[str, Any], role: str
) -> tuple[Factory, dict[str, Any]]:
    """The callable and its keyword arguments, nothing built yet; arguments and errors as for `build`."""
    factory = find(name)
    # A plug-in that wraps another takes that one's hyperparameters, too: it says what its signature is then.
    if specialize := getattr(factory, "specialize", None):
        factory = specialize(hyperparameters)
    # null in a role's lr or weight_decay means that the role leaves it to the shared one.
    own = {key: v for key, v in hyperparameters.items() if not (v is None and key in shared)}
    common = {key: v for key, v in shared.items() if v is not None and accepts(factory, key)}
    return factory, fit(factory, {**common, **own}, str(name), f"optimizer.{role}")


def build(
    name: str,
    params: Sequence[torch.Tensor],
    hyperparameters: Mapping[str, Any],
    *,
    shared: Mapping[str, Any] | None = None,
    role: str,
) -> Optimizer:
    """Build the optimizer of one role.

    Args:
        name: as for `find`.
        params: the tensors it trains, all of them.
        hyperparameters: what the user wrote for this role; must fit the signature.
        shared: ``lr`` and ``weight_decay`` that fill in where the role sets none, if taken.
        role: for messages: ``optimizer.hidden`` is where the user finds what to change.

    Raises:
        OptimizerError: anything above that does not fit, a value that the optimizer refuses, a result that is
            no optimizer, needs a closure or sparse gradients, or does not train exactly ``params``.
    """
    factory, arguments = resolve(name, hyperparameters, shared or {}, role)
    return construct(name, factory, params, arguments, f"optimizer.{role}")


def construct(
    name: str, factory: Factory, params: Sequence[torch.Tensor], arguments: Mapping[str, Any], section: str
) -> Optimizer:
    """What ``factory`` builds from its ``arguments``, checked; errors as for `build`."""
    try:
        optimizer = _call(factory, params, {**arguments, **_one_pass(factory, params, arguments)})
    # A plug-in is foreign code: whatever it raises is the user's to read, as one sentence.
    except Exception as error:
        written = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "its defaults"
        raise OptimizerError(f"{section}: {name} cannot be built with {written}: {reason(error)}.") from error
    if not isinstance(optimizer, Optimizer):
        raise OptimizerError(
            f"{section}: {name} returned a {type(optimizer).__name__}, which is no torch.optim.Optimizer."
        )
    takes = inspect.signature(optimizer.step).parameters
    if "closure" in takes and takes["closure"].default is inspect.Parameter.empty:
        raise OptimizerError(
            f"{section}: {name} evaluates the loss several times a step, and here it is computed once; "
            "choose an optimizer whose step needs no closure, for example adam."
        )
    # Who would take the Hessian's diagonal computes it otherwise, not always in the first step.
    if "hessian" in takes:
        raise OptimizerError(f"{section}: {name} {SECOND_ORDER}.")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise OptimizerError(f"{section}: {name} works on sparse gradients only and ours are dense; choose adam.")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if trained != {id(p) for p in params}:
        raise OptimizerError(
            f"{section}: {name} was given {len(params)} parameters and trains {len(trained)}, not the same; "
            "a plug-in must train every parameter it is given and no other."
        )
    return optimizer


def _call(factory: Factory, params: Sequence[torch.Tensor], arguments: Mapping[str, Any]) -> Any:
    """What ``factory`` returns for the parameters, or for groups of them with ``use_muon`` where it needs that key.

    Such an optimizer orthogonalizes the updates of matrices and has another rule for all others.
    """
    try:
        return factory(list(params), **arguments)
    except Exception:
        kinds = {True: [p for p in params if p.ndim > 1], False: [p for p in params if p.ndim < 2]}
        groups = [{"params": members, "use_muon": is_muon} for is_muon, members in kinds.items() if members]
        try:
            factory([{"params": list(params)}], **arguments)
        except Exception as without:
            try:
                return factory(groups, **arguments)
            except Exception as another:
                # The key has been understood, and something else is wrong.
                if reason(another) != reason(without):
                    raise
        raise


def _one_pass(factory: Factory, params: Sequence[torch.Tensor], arguments: Mapping[str, Any]) -> dict[str, bool]:
    """Have torch's own optimizers update all there is in one pass over memory, where they can and nothing else is asked
    for: a third of the time of an Adam step. torch has no such pass for complex parameters.
    """
    how = {"fused", "foreach", "differentiable", "capturable"}
    if factory not in _from_torch.values() or not accepts(factory, "fused") or how & arguments.keys():
        return {}
    return {"fused": True} if all(parameter.is_floating_point() for parameter in params) else {}


def _from_extra() -> dict[str, Factory]:
    # Imported only for a name that nobody else knows: it takes a second.
    if importlib.util.find_spec(EXTRA) is None:
        return {}
    try:
        module = importlib.import_module(EXTRA)
    except Exception as error:
        raise OptimizerError(f"The package {EXTRA} could not be imported: {reason(error)}.") from error
    # Some wrap another optimizer; what does not begin with parameters cannot be built from them.
    return {
        value.__name__.lower(): value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Optimizer)
        and next(iter(inspect.signature(value).parameters), "") == "params"
    }


def _on_copies(factory: Factory) -> Factory:
    def build(params: Sequence[torch.Tensor], **hyperparameters: Any) -> Optimizer:
        return GradientFilter(factory(params, **hyperparameters))

    build.__signature__ = inspect.signature(factory)  # type: ignore[attr-defined]
    return build


def _import_path(name: str) -> Any:
    path, _, attribute = name.partition(":")
    module = importlib.import_module(path)
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        raise OptimizerError(
            f"The optimizer {name!r} could not be imported: module {path} has no attribute {attribute!r}."
            f"{nearest(attribute, dir(module))}"
        ) from error


def _load(name: str, load: Callable[[], Any]) -> Factory:
    try:
        factory = load()
    except OptimizerError:
        raise
    except (Exception, SystemExit) as error:
        raise OptimizerError(f"The optimizer {name!r} could not be imported: {reason(error)}.") from error
    if not callable(factory):
        raise OptimizerError(f"The optimizer {name!r} is a {type(factory).__name__}, not a class or function.")
    return factory  # type: ignore[no-any-return]  # `build` checks what it returns


def _announced(point: EntryPoint) -> str:
    """The import path and the package that announces it."""
    return f"{point.value} of the package {point.dist.name if point.dist else 'without a name'}"


def _where(factory: Factory) -> str:
    return f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__name__)}"
