"""Optimizers by name: what a YAML calls ``name`` becomes a ``torch.optim.Optimizer``.

`OPTIMIZERS` is a `li2_lightning.plugins.Registry`, so a name is ``@register("name")`` in any module of
``optimizers/``, an entry point in the group ``li2_lightning.optimizers``, or an import path. After these come

* the classes of ``torch.optim`` by lower-case name;
* the classes of the package ``pytorch_optimizer`` by lower-case name, if that is installed. They get copies of the
  gradients, because many of them write into the tensors that they are given.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from li2_lightning.errors import InputError, reason
from li2_lightning.plugins import Registry, accepts
from optimizers.filters.gradient_filter import GradientFilter

EXTRA = "pytorch_optimizer"
SECOND_ORDER = (
    "needs second derivatives of the loss (backward with create_graph=True), and here the first are computed; "
    "choose another optimizer, for example adam"
)

Factory = Callable[..., Optimizer]

_from_torch: dict[str, Factory] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}


class OptimizerRegistry(Registry[Factory]):
    """The optimizers that are registered, announced, or named by import path, and those of torch and the extra."""

    def libraries(self) -> Iterator[Mapping[str, Factory]]:
        yield _from_torch
        yield _from_extra()

    def listing(self) -> str:
        extra = _from_extra()
        others = sorted(extra.keys() - self._entries.keys() - _from_torch.keys())
        known = ", ".join(name for name in self.names() if name not in others)
        if extra:
            known += f", and from {EXTRA} {', '.join(others)}"
        more = "" if extra else "; pip install 'li2-lightning[optimizers]' adds lion, shampoo, soap and others"
        return f"{known}, or an import path package.module:Class{more}"


OPTIMIZERS = OptimizerRegistry("optimizer", "li2_lightning.optimizers", makes=Optimizer)
register, find, names = OPTIMIZERS.register, OPTIMIZERS.find, OPTIMIZERS.names


def specialized(name: str, hyperparameters: Mapping[str, Any]) -> Factory:
    """The plug-in called ``name``. One that wraps another optimizer gets that optimizer's hyperparameters as well."""
    factory = find(name)
    specialize = getattr(factory, "specialize", None)
    return specialize(hyperparameters) if specialize else factory


def resolve(
    name: str, hyperparameters: Mapping[str, Any], shared: Mapping[str, Any], role: str
) -> tuple[Factory, dict[str, Any]]:
    """The callable and its keyword arguments, nothing built yet; arguments and errors as for `build`."""
    factory = specialized(name, hyperparameters)
    # null in a role's lr or weight_decay means that the role leaves it to the shared one.
    own = {key: v for key, v in hyperparameters.items() if not (v is None and key in shared)}
    common = {key: v for key, v in shared.items() if v is not None and accepts(factory, key, 1)}
    return factory, OPTIMIZERS.fit(name, factory, {**common, **own}, f"optimizer.{role}", 1)


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
        name: as for `Registry.find`.
        params: the tensors it trains, all of them.
        hyperparameters: what the user wrote for this role; must fit the signature.
        shared: ``lr`` and ``weight_decay`` for an optimizer that takes them and a role that sets none.
        role: for messages, which name the section: ``optimizer.hidden``.

    Raises:
        InputError: an argument that does not fit, a value that the optimizer refuses, a result that is no optimizer,
            an optimizer that needs a closure or sparse gradients, or does not train exactly ``params``.
    """
    factory, arguments = resolve(name, hyperparameters, shared or {}, role)
    return construct(name, factory, params, arguments, f"optimizer.{role}")


def construct(
    name: str, factory: Factory, params: Sequence[torch.Tensor], arguments: Mapping[str, Any], section: str
) -> Optimizer:
    """What ``factory`` builds from its ``arguments``, checked; errors as for `build`."""
    try:
        optimizer: Optimizer = _call(factory, params, {**arguments, **_one_pass(factory, params, arguments)})
    # A plug-in is foreign code and may raise anything.
    except Exception as error:
        written = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "its defaults"
        raise InputError(f"{section}: {name} cannot be built with {written}: {reason(error)}.") from error
    OPTIMIZERS.check(name, optimizer)
    takes = inspect.signature(optimizer.step).parameters
    if "closure" in takes and takes["closure"].default is inspect.Parameter.empty:
        raise InputError(
            f"{section}: {name} evaluates the loss several times a step, and here it is computed once; "
            "choose an optimizer whose step needs no closure, for example adam."
        )
    # Without this argument such an optimizer computes the Hessian's diagonal itself, not always in the first step.
    if "hessian" in takes:
        raise InputError(f"{section}: {name} {SECOND_ORDER}.")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise InputError(f"{section}: {name} works on sparse gradients only and ours are dense; choose adam.")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if trained != {id(p) for p in params}:
        raise InputError(
            f"{section}: {name} was given {len(params)} parameters and trains {len(trained)}, not the same; "
            "a plug-in must train every parameter it is given and no other."
        )
    return optimizer


def _call(factory: Factory, params: Sequence[torch.Tensor], arguments: Mapping[str, Any]) -> Any:
    """What ``factory`` returns for the parameters; for groups with the key ``use_muon`` where it needs that key.

    Such an optimizer orthogonalizes the updates of matrices and has another rule for the other parameters.
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
                # The error differs with the key: the optimizer has read the key, and something else is wrong.
                if reason(another) != reason(without):
                    raise
        raise


def _one_pass(factory: Factory, params: Sequence[torch.Tensor], arguments: Mapping[str, Any]) -> dict[str, bool]:
    """The argument that lets an optimizer of torch update all parameters in one pass over memory, where it can.

    An Adam step then takes a third of the time. The argument is left out for complex parameters, and where the user has
    set another way.
    """
    ways = {"fused", "foreach", "differentiable", "capturable"}
    if factory not in _from_torch.values() or not accepts(factory, "fused", 1) or ways & arguments.keys():
        return {}
    return {"fused": True} if all(parameter.is_floating_point() for parameter in params) else {}


def _from_extra() -> dict[str, Factory]:
    # Imported only for a name that is known nowhere else: the import takes a second.
    if importlib.util.find_spec(EXTRA) is None:
        return {}
    try:
        module = importlib.import_module(EXTRA)
    except Exception as error:
        raise InputError(f"The package {EXTRA} could not be imported: {reason(error)}.") from error
    # Some of the classes wrap another optimizer: their first argument is not the parameters.
    return {
        value.__name__.lower(): _on_copies(value)
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
