"""Which callbacks a run has, and in which order they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning

from li2_lightning.errors import InputError
from li2_lightning.registry import Registry, check_options

CALLBACKS: Registry[Callable[..., lightning.Callback]] = Registry("callback", "li2_lightning.callbacks")

# On unless they are switched off. Measurements come first; the stages read their columns; plug-ins see the stage; the
# terminal shows it all; a checkpoint holds the state of everything before it; the report reads the finished files.
MEASURING = ("gradient", "gram", "energy", "features", "interaction", "updates", "stages")
KEEPING = ("progress", "pictures", "checkpoint", "report")


def build_callbacks(sections: Mapping[str, Mapping[str, Any]]) -> list[lightning.Callback]:
    """The callbacks of a run, in order.

    Args:
        sections: ``callbacks`` of the config: a name and its options; ``enabled: false`` switches one off.

    Raises:
        InputError: an unknown callback or option, or a plug-in that is no callback.
    """
    plug_ins = [name for name in sections if name not in MEASURING + KEEPING]
    callbacks = []
    for name in (*MEASURING, *plug_ins, *KEEPING):
        options = dict(sections.get(name, {}))
        enabled = options.pop("enabled", True)
        if not isinstance(enabled, bool):
            raise InputError(f"callbacks.{name}.enabled={enabled!r} does not fit; it is true or false.")
        # The options of one that is off are checked, too: a typo there is a typo.
        check_options(CALLBACKS.find(name), options, f"callback {name!r}", f"callbacks.{name}")
        if enabled:
            callback = CALLBACKS.build(name, f"callbacks.{name}", options)
            if not isinstance(callback, lightning.Callback):
                raise InputError(f"The callback {name!r} gave a {type(callback).__name__}, not a lightning.Callback.")
            callbacks.append(callback)
    return callbacks
