"""Which runs of a sweep are trained together, and how many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from typing import Any

from li2_lightning.config.schema import Config, to_plain
from li2_lightning.losses import takes_stacks_class
from li2_lightning.networks.base import NETWORKS

AUTO = "auto"
# Keys in which the runs of a stack may differ. Numbers in the sections of optimizers and schedules may differ, too.
VARYING = (
    "seed", "data.seed", "output_dir", "name", "force", "resume", "debug", "stack", "stop_at_test_accuracy",
    "network.readout_init_scale", "network.output_scale", "network.ridge", "optimizer.lr", "optimizer.weight_decay",
    "logger.tags",
)  # fmt: skip
OF_PLUGINS = ("optimizer", "scheduler")


def obstacle(config: Config) -> str | None:
    """The setting for which a run is trained by itself; None where it can be part of a stack."""
    if not takes_stacks_class(NETWORKS.find(config.network.name)):
        return f"network.name={config.network.name}"
    if config.trainer.compile:
        return "trainer.compile=true"
    if config.trainer.devices * config.trainer.num_nodes > 1:
        return f"trainer.devices={config.trainer.devices}"
    # Its scale of the loss is one for all runs, and an overflow in one run would undo the updates of all.
    if config.trainer.precision == "16-mixed":
        return "trainer.precision=16-mixed"
    return None


def kind(config: Config) -> str:
    """What the runs of a stack have in common: shapes, plug-ins by name, number of steps; equal texts go together."""
    plain = to_plain(config)
    for key in VARYING:
        *sections, name = key.split(".")
        reduce(lambda section, part: section[part], sections, plain).pop(name, None)
    for key in OF_PLUGINS:
        plain[key] = _without_numbers(plain[key])
    return json.dumps(plain, sort_keys=True)


def _without_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_numbers(entry) for key, entry in value.items()}
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value
