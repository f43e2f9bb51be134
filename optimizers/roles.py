"""From a config to one optimizer: which parameters train by what, each exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from optimizers.composite import CompositeOptimizer
from optimizers.errors import OptimizerError, check_choice
from optimizers.registry import build, listing, resolve
from optimizers.signature import accepts

ROLES = ("hidden", "output", "embedding")
SHARED = ("lr", "weight_decay")

NamedParameters = Sequence[tuple[str, Parameter]]


def build_optimizer(parameters: Mapping[str, NamedParameters], config: Mapping[str, Any]) -> CompositeOptimizer:
    """One optimizer for each role that has trainable parameters, joined.

    Args:
        parameters: role -> pairs of name and parameter; those that require no gradient are left out.
        config: ``lr`` and ``weight_decay`` (shared, may be None), and for each role a mapping with ``name``
            and hyperparameters. A role without parameters builds nothing, but what it says must still fit.

    Raises:
        OptimizerError: an unknown role, a role without ``name``, a parameter in two roles, nothing to train,
            and whatever `registry.build` refuses.
    """
    for key in config:
        check_choice("The optimizer key", key, (*SHARED, *ROLES))
    shared = {key: config.get(key) for key in SHARED}
    trainable = _trainable(parameters)
    children: dict[str, Optimizer] = {}
    called: dict[str, str] = {}
    notes: dict[str, str] = {}
    for role in ROLES:
        section = config.get(role)
        if section is None and not trainable[role]:
            continue
        if not isinstance(section, Mapping) or not section.get("name"):
            raise OptimizerError(
                f"optimizer.{role} needs a name, for example optimizer.{role}.name=adam; known are {listing()}."
            )
        name, hyperparameters = section["name"], {key: v for key, v in section.items() if key != "name"}
        factory, _ = resolve(name, hyperparameters, shared, role)
        if not trainable[role]:
            continue
        children[role] = build(name, list(trainable[role].values()), hyperparameters, shared=shared, role=role)
        called[role] = name
        named = {id(parameter): label for label, parameter in trainable[role].items()}
        for group in children[role].param_groups:
            group["param_names"] = [named[id(parameter)] for parameter in group["params"]]
        if shared["weight_decay"] and not accepts(factory, "weight_decay"):
            notes[role] = f"takes no weight decay, the shared {shared['weight_decay']} is not applied"
    return CompositeOptimizer(children, called, notes)


def check_cover(all_named_parameters: Iterable[tuple[str, Tensor]], parameters: Mapping[str, NamedParameters]) -> None:
    """Every trainable parameter of the network belongs to exactly one role.

    Args:
        all_named_parameters: ``network.named_parameters()``.
        parameters: as for `build_optimizer`.

    Raises:
        OptimizerError: one belongs to two roles, or to none.
    """
    covered = {id(parameter) for named in _trainable(parameters).values() for parameter in named.values()}
    missing = [
        name for name, parameter in all_named_parameters if parameter.requires_grad and id(parameter) not in covered
    ]
    if missing:
        raise OptimizerError(
            f"No role trains {', '.join(missing)}; every trainable parameter belongs to one of {', '.join(ROLES)}."
        )


def describe(composite: CompositeOptimizer) -> str:
    """The split as text, one line a role: optimizer, lr, weight decay, parameters with shapes, remarks."""
    lines = []
    for role, child in composite.children.items():
        groups = child.param_groups
        tensors = [
            f"{name} ({'×'.join(map(str, parameter.shape))})"
            for group in groups
            for name, parameter in zip(
                group.get("param_names", ["?"] * len(group["params"])), group["params"], strict=True
            )
        ]
        note = f"  [{composite.notes[role]}]" if role in composite.notes else ""
        lines.append(
            f"{role:<9}  {composite.names[role]}  lr {_values(groups, 'lr')}  "
            f"weight decay {_values(groups, 'weight_decay')}  {', '.join(tensors)}{note}"
        )
    return "\n".join(lines)


def _trainable(parameters: Mapping[str, NamedParameters]) -> dict[str, dict[str, Parameter]]:
    trainable: dict[str, dict[str, Parameter]] = {role: {} for role in ROLES}
    owner: dict[int, str] = {}
    for role, named in parameters.items():
        check_choice("The role", role, ROLES)
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            if id(parameter) in owner:
                raise OptimizerError(
                    f"{role}: {name} is trained already as {owner[id(parameter)]}; "
                    "every trainable parameter belongs to exactly one role."
                )
            owner[id(parameter)] = f"{role}: {name}"
            trainable[role][name] = parameter
    return trainable


def _values(groups: Sequence[Mapping[str, Any]], key: str) -> str:
    return "/".join(dict.fromkeys("none" if group.get(key) is None else f"{group[key]:g}" for group in groups))
