"""From a config to one optimizer: every parameter belongs to exactly one role, and each role has an optimizer."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from li2_lightning.errors import InputError, check_choice
from li2_lightning.plugins import accepts, beyond_defaults, identifies, options_of
from optimizers.composite import CompositeOptimizer
from optimizers.layouts import Layout, check_layouts
from optimizers.registry import OPTIMIZERS, Factory, construct, resolve

ROLES = ("hidden", "output", "embedding")
SHARED = ("lr", "weight_decay")

NamedParameters = Sequence[tuple[str, Parameter]]


def build_optimizer(
    parameters: Mapping[str, NamedParameters],
    config: Mapping[str, Any],
    layouts: Mapping[str, Layout] | None = None,
) -> CompositeOptimizer:
    """One optimizer for each role that has trainable parameters, joined.

    Each parameter group gets its parameters' names (``param_names``) and layouts (``layouts``).

    Args:
        parameters: role -> pairs of name and parameter; those that require no gradient are left out.
        config: ``lr`` and ``weight_decay`` (shared, may be None), and for each role a mapping with ``name``
            and hyperparameters. The section of a role without parameters builds nothing and must fit all the same.
        layouts: name of a parameter -> what the network declares of it (`optimizers.layouts`).

    Raises:
        InputError: an unknown role, a role without ``name``, a parameter in two roles, nothing to train,
            a hyperparameter that contradicts a layout, and all errors of `registry.build`.
    """
    for key in config:
        check_choice("optimizer key", key, (*SHARED, *ROLES))
    shared = {key: config.get(key) for key in SHARED}
    trainable = _trainable(parameters)
    plain_layouts = {label: dict(layout) for label, layout in (layouts or {}).items()}
    children: dict[str, Optimizer] = {}
    called: dict[str, str] = {}
    notes: dict[str, str] = {}
    for role in ROLES:
        section = config.get(role)
        if section is None and not trainable[role]:
            continue
        name, hyperparameters = _read(role, section)
        factory, arguments = resolve(name, hyperparameters, shared, role)
        if not trainable[role]:
            continue
        children[role] = construct(name, factory, list(trainable[role].values()), arguments, f"optimizer.{role}")
        called[role] = name
        named = {id(parameter): label for label, parameter in trainable[role].items()}
        for group in children[role].param_groups:
            group["param_names"] = [named[id(parameter)] for parameter in group["params"]]
            group["layouts"] = [plain_layouts.get(label) for label in group["param_names"]]
            try:
                check_layouts(group)
            except InputError as error:
                raise InputError(f"optimizer.{role}: {name}: {error}") from None
        if shared["weight_decay"] and hyperparameters.get("weight_decay") is None:
            is_taken = accepts(factory, "weight_decay", 1)
            notes[role] = (
                "shared decay"
                if is_taken
                else f"takes no weight decay, the shared {shared['weight_decay']} is not applied"
            )
    return CompositeOptimizer(children, called, notes)


def spell_out(config: Mapping[str, Any], multiplied: Collection[str] = ()) -> dict[str, Any]:
    """The config of `build_optimizer` with the values that it leaves to the optimizers' own defaults written into it.

    Where the shared ``lr`` or ``weight_decay`` is None, a role that sets none has the default of its optimizer. The
    most frequent of these defaults becomes the shared value, and the other defaults stand in their roles. Where the
    signature of one optimizer does not tell a default, nothing becomes shared.

    Args:
        config: as for `build_optimizer`, with a section for every role; left as it is.
        multiplied: those of ``lr`` and ``weight_decay`` that are to be multiplied afterwards.

    Raises:
        InputError: a role without ``name``, hyperparameters that do not fit, an optimizer that needs a value and
            has none, one whose default is to be multiplied and is not known.
    """
    complete = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    shared = {key: config.get(key) for key in SHARED}
    defaults: dict[str, dict[str, float | None]] = {key: {} for key in SHARED}
    for role in ROLES:
        name, hyperparameters = _read(role, config.get(role))
        factory, given = resolve(name, hyperparameters, shared, role)
        for key in SHARED:
            if key not in given and accepts(factory, key, 1):
                value = defaults[key][role] = _own_default(factory, key)
                if value is None and key in multiplied:
                    raise InputError(
                        f"optimizer.{role}: {name} does not tell its own {key}, which multiple.{key} cannot multiply "
                        f"then; set optimizer.{role}.{key}."
                    )
    for key, own in defaults.items():
        known = [value for value in own.values() if value is not None]
        common = statistics.mode(known) if known and len(known) == len(own) else None
        if complete.get(key) is None:
            complete[key] = common
        for role, value in own.items():
            if value is not None and value != complete[key]:
                complete[role][key] = value
    return complete


@identifies("optimizer")
def optimizer_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an ``optimizer`` section that counts: each role's name, and the options that are not its defaults.

    A shared value counts as an option of each role that it fills in for. A section that cannot be built is left as it
    is; `build_optimizer` refuses it.

    Args:
        config: as for `build_optimizer`.
    """
    shared = {key: config.get(key) for key in SHARED}
    roles = {}
    for role in ROLES:
        try:
            name, given = _read(role, config.get(role))
            factory, arguments = resolve(name, given, shared, role)
        except InputError:
            return dict(config)
        roles[role] = {"name": name, **beyond_defaults(factory, arguments)}
    return roles


def check_cover(all_named_parameters: Iterable[tuple[str, Tensor]], parameters: Mapping[str, NamedParameters]) -> None:
    """Every trainable parameter of the network belongs to exactly one role.

    Args:
        all_named_parameters: ``network.named_parameters()``.
        parameters: as for `build_optimizer`.

    Raises:
        InputError: one belongs to two roles, or to none.
    """
    covered = {id(parameter) for named in _trainable(parameters).values() for parameter in named.values()}
    missing = [
        name for name, parameter in all_named_parameters if parameter.requires_grad and id(parameter) not in covered
    ]
    if missing:
        raise InputError(
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


def _read(role: str, section: Any) -> tuple[str, dict[str, Any]]:
    """The name that a role's section gives, and the hyperparameters."""
    if not isinstance(section, Mapping) or not section.get("name"):
        raise InputError(
            f"optimizer.{role} needs a name, for example optimizer.{role}.name=adam; known are {OPTIMIZERS.listing()}."
        )
    return section["name"], {key: value for key, value in section.items() if key != "name"}


def _own_default(factory: Factory, key: str) -> float | None:
    """The default of ``factory`` for ``key``; None where its signature does not tell a number."""
    parameters, _ = options_of(factory, 1)
    default = parameters[key].default if key in parameters else None
    return float(default) if isinstance(default, int | float) and not isinstance(default, bool) else None


def _trainable(parameters: Mapping[str, NamedParameters]) -> dict[str, dict[str, Parameter]]:
    trainable: dict[str, dict[str, Parameter]] = {role: {} for role in ROLES}
    owner: dict[int, str] = {}
    for role, named in parameters.items():
        check_choice("role", role, ROLES)
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            if id(parameter) in owner:
                raise InputError(
                    f"{role}: {name} is trained already as {owner[id(parameter)]}; "
                    "every trainable parameter belongs to exactly one role."
                )
            owner[id(parameter)] = f"{role}: {name}"
            trainable[role][name] = parameter
    return trainable


def _values(groups: Sequence[Mapping[str, Any]], key: str) -> str:
    return "/".join(dict.fromkeys("none" if group.get(key) is None else f"{group[key]:g}" for group in groups))
