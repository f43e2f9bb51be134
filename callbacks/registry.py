"""The registry of callbacks, and the order in which a run calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import lightning

from li2_lightning.config.identity import register_identity
from li2_lightning.errors import InputError
from li2_lightning.plugins import Registry, beyond_defaults, check_options

CALLBACKS: Registry[Callable[..., lightning.Callback]] = Registry("callback", "li2_lightning.callbacks")

# These callbacks are on by default. The order matters: the stages read the columns of the callbacks before them, and
# plug-ins (between the two lists) read the stage. The terminal shows columns and stage, a checkpoint holds the state of
# every callback, and the report reads the finished files.
MEASURING = ("gradient", "gram", "energy", "features", "interaction", "updates", "stages")
KEEPING = ("progress", "pictures", "checkpoint", "report")


def build_callbacks(sections: Mapping[str, Mapping[str, Any]]) -> list[lightning.Callback]:
    """The callbacks of a run, in order.

    Args:
        sections: ``callbacks`` of the config: label → options. The option ``name`` chooses the callback (default: the
            label), and ``enabled: false`` switches it off.

    Raises:
        InputError: an unknown callback or option, or a plug-in that is no callback.
    """
    callbacks = []
    for label in _labels(sections):
        name, enabled, options = _read(label, sections.get(label, {}))
        # The options of a callback that is off are checked, too, so that a typo does not go unnoticed.
        check_options(CALLBACKS.find(name), options, f"callback {name!r}", f"callbacks.{label}")
        if enabled:
            callback = CALLBACKS.build(name, f"callbacks.{label}", options)
            if not isinstance(callback, lightning.Callback):
                raise InputError(f"The callback {name!r} gave a {type(callback).__name__}, not a lightning.Callback.")
            callbacks.append(callback)
    return callbacks


def with_defaults(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``sections`` with all callbacks and options written out, so that equal settings are equal dictionaries.

    A callback that is off has no option but ``enabled``.

    Raises:
        InputError: as for `build_callbacks`.
    """
    complete: dict[str, dict[str, Any]] = {}
    for label in _labels(sections):
        name, enabled, options = _read(label, sections.get(label, {}))
        factory = CALLBACKS.find(name)
        check_options(factory, options, f"callback {name!r}", f"callbacks.{label}")
        parameters = inspect.signature(factory).parameters.values()
        defaults = {p.name: p.default for p in parameters if isinstance(p.default, bool | int | float | str | None)}
        named = {} if name == label else {"name": name}
        complete[label] = named | ({"enabled": True} | defaults | options if enabled else {"enabled": False})
    return complete


def callbacks_identity(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings that differ from the defaults, for `config_hash`; built-in callbacks are on by default, others off.

    Raises:
        InputError: as for `build_callbacks`.
    """
    counted: dict[str, dict[str, Any]] = {}
    for label in sections:
        name, enabled, options = _read(label, sections[label])
        ours = label in MEASURING + KEEPING
        own = beyond_defaults(CALLBACKS.find(name), options) if enabled else {}
        if own or enabled is not ours:
            counted[label] = {"name": name, "enabled": enabled, **own}
    return counted


register_identity("callbacks", callbacks_identity)


def _labels(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All labels, in the order in which the callbacks are called."""
    return [*MEASURING, *(label for label in sections if label not in MEASURING + KEEPING), *KEEPING]


def _read(label: str, section: Mapping[str, Any]) -> tuple[str, bool, dict[str, Any]]:
    """The name of a section's callback, whether it is on, and its options."""
    options = dict(section)
    enabled, name = options.pop("enabled", True), options.pop("name", label)
    if not isinstance(enabled, bool):
        raise InputError(f"callbacks.{label}.enabled={enabled!r} does not fit; it is true or false.")
    if not isinstance(name, str):
        raise InputError(f"callbacks.{label}.name={name!r} does not fit; it is the name or import path of a callback.")
    if label in MEASURING + KEEPING and name != label:
        raise InputError(f"callbacks.{label}.name={name!r} would replace a callback of ours; give yours another label.")
    return name, enabled, options
