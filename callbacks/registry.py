"""The registry of callbacks, and the order in which a run calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning

from li2_lightning.cadence import spelled_once
from li2_lightning.errors import InputError
from li2_lightning.plugins import Registry, beyond_defaults, identifies, options_of

CALLBACKS: Registry[Callable[..., lightning.Callback]] = Registry(
    "callback", "li2_lightning.callbacks", makes=lightning.Callback
)

# These callbacks are on by default. The order matters: the stages read the columns of the callbacks before them, and
# plug-ins (between the two lists) read the stage. The terminal shows columns and stage, a checkpoint holds the state of
# every callback, and the report reads the finished files.
MEASURING = ("gradient", "gram", "energy", "features", "interaction", "updates", "stages")
KEEPING = ("progress", "pictures", "snapshots", "checkpoint", "report")


def build_callbacks(sections: Mapping[str, Mapping[str, Any]]) -> list[lightning.Callback]:
    """The callbacks of a run, in order.

    Args:
        sections: ``callbacks`` of the config: label → options. The option ``name`` chooses the callback (default: the
            label), and ``enabled: false`` switches it off.

    Raises:
        InputError: an unknown callback or option, or a plug-in that is no callback.
    """
    # The options of a callback that is off are checked as well, so that a slip of the hand never passes unnoticed.
    read = [(label, *_read(label, sections.get(label, {}))) for label in _labels(sections)]
    return [CALLBACKS.build(name, f"callbacks.{label}", options) for label, name, enabled, options in read if enabled]


def with_defaults(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``sections`` with all callbacks and options written out, so that equal settings are equal dictionaries.

    A callback that is off has no option but ``enabled``.

    Raises:
        InputError: as for `build_callbacks`.
    """
    complete: dict[str, dict[str, Any]] = {}
    for label in _labels(sections):
        name, enabled, options = _read(label, sections.get(label, {}))
        parameters, _ = options_of(CALLBACKS.find(name))
        simple = (bool, int, float, str, type(None))
        defaults = {key: p.default for key, p in parameters.items() if isinstance(p.default, simple)}
        named = {} if name == label else {"name": name}
        complete[label] = named | ({"enabled": True} | defaults | options if enabled else {"enabled": False})
    return complete


@identifies("callbacks")
def callbacks_identity(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The part of a ``callbacks`` section that counts: the options that are not the defaults of their callback.

    A callback of this project is on by default; a plug-in is off.

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


def _labels(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All labels, in the order in which the callbacks are called."""
    return [*MEASURING, *(label for label in sections if label not in MEASURING + KEEPING), *KEEPING]


def _read(label: str, section: Mapping[str, Any]) -> tuple[str, bool, dict[str, Any]]:
    """The callback that a section names, whether it is on, and its options, which fit it."""
    options = dict(section)
    enabled, name = options.pop("enabled", True), options.pop("name", label)
    if not isinstance(enabled, bool):
        raise InputError(f"callbacks.{label}.enabled={enabled!r} does not fit; it is true or false.")
    if not isinstance(name, str):
        raise InputError(f"callbacks.{label}.name={name!r} does not fit; it is the name or import path of a callback.")
    if label in MEASURING + KEEPING and name != label:
        raise InputError(f"callbacks.{label}.name={name!r} would replace a callback of ours; give yours another label.")
    fitted = CALLBACKS.fit(name, CALLBACKS.find(name), options, f"callbacks.{label}")
    return name, enabled, {key: spelled_once(v) if key.endswith("every_n_steps") else v for key, v in fitted.items()}
