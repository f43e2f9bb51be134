"""Which runs of a sweep are trained together, and how many.

Runs of one `kind` have the same shapes and differ in their seeds and in numbers of their optimizers and schedules.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any

from li2_lightning.config.schema import Config, to_plain
from li2_lightning.distributed.machine import Memory, memory_for
from li2_lightning.networks.base import NETWORKS
from li2_lightning.plugins import takes_stacks
from li2_lightning.sweeps.plan import Job
from li2_lightning.tasks.tasks import build_task

# For stack=auto. More runs in one stack gain little; on a CPU a run of more features (rows × width) gains nothing.
MOST, MOST_ON_GPU, LARGEST_RUN = 32, 128, 2**21
# Tensors as large as the features of all rows that a run has in the memory of a GPU, where rows are not in blocks.
FEATURES = 4
# Tensors as large as its weights that a run has in memory: values, gradients, optimizer state, the window of updates.
COPIES = 32
# Keys in which the runs of a stack may differ. Numbers in the sections of optimizers and schedules may differ, too.
VARYING = (
    "seed", "data.seed", "output_dir", "name", "force", "resume", "debug", "stack", "stop_at_test_accuracy",
    "network.init_scale", "network.hidden_init_scale", "network.readout_init_scale", "network.output_scale",
    "network.ridge", "optimizer.lr", "optimizer.weight_decay", "logger.tags",
)  # fmt: skip
OF_PLUGINS = ("optimizer", "scheduler")


def obstacle(config: Config) -> str | None:
    """The setting for which a run is trained by itself; None where it can be part of a stack."""
    if not takes_stacks(NETWORKS.find(config.network.name)):
        return f"network.name={config.network.name}"
    if config.trainer.compile:
        return "trainer.compile=true"
    # In a stack clipping would take the norm of the gradients of all runs, and a time limit would end all runs.
    if config.trainer.extra:
        return f"trainer.extra.{next(iter(config.trainer.extra))}"
    if config.trainer.devices * config.trainer.num_nodes > 1:
        return f"trainer.devices={config.trainer.devices}"
    # Its scale of the loss is common to all runs, so an overflow in one run would undo the updates of all.
    if config.trainer.precision == "16-mixed":
        return "trainer.precision=16-mixed"
    return None


def kind(config: Config) -> str:
    """Shapes, names of plug-ins, number of steps, as a text; runs with the same text can form a stack."""
    plain = to_plain(config)
    for key in VARYING:
        *sections, name = key.split(".")
        reduce(lambda section, part: section[part], sections, plain).pop(name, None)
    for key in OF_PLUGINS:
        plain[key] = _without_numbers(plain[key])
    return json.dumps(plain, sort_keys=True)


def _without_numbers(value: Any) -> Any:
    """Options of a plug-in without its numbers and lists of numbers; what is left says what is computed."""
    if isinstance(value, Mapping):
        return {key: _without_numbers(entry) for key, entry in value.items() if not _is_number(entry)}
    return value


def _is_number(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def stacks(jobs: Sequence[Job], processes: int | None) -> list[list[Job]]:
    """Divide the runs of a sweep into stacks; a run by itself is a stack of one.

    Args:
        jobs: the runs that are to be trained.
        processes: the number of processes that share them; None where a queue decides.
    """
    kinds: dict[Any, list[Job]] = defaultdict(list)
    for job in jobs:
        assert job.config is not None
        alone = obstacle(job.config) is not None or job.config.stack == "1"
        kinds[str(job.directory) if alone else (kind(job.config), job.config.stack)].append(job)
    share = math.ceil(len(jobs) / (processes or 1))
    found: list[list[Job]] = []
    for members in kinds.values():
        config = members[0].config
        assert config is not None
        size = 1
        if len(members) > 1:
            auto = config.stack == "auto"
            size = automatic(config, memory_for(config), processes or 1) if auto else int(config.stack)
        # The runs are spread over the processes before the stacks are filled.
        size = max(1, min(size, share))
        parts = math.ceil(len(members) / size)
        found += [members[len(members) * part // parts : len(members) * (part + 1) // parts] for part in range(parts)]
    return found


def automatic(config: Config, memory: Memory, processes: int = 1) -> int:
    """The number of runs of this kind that ``stack=auto`` trains together, where some processes share a memory."""
    task = build_task(asdict(config.task))
    rows, width = len(task.labels), config.network.width
    # A run has at most all rows of its task.
    if not memory.on_gpu and rows * (config.data.train_fraction or 0.4) * width > LARGEST_RUN:
        return 1
    weights = width * (task.num_operands * task.num_tokens + task.num_classes + config.network.hidden_layers * width)
    most, features = (MOST_ON_GPU, FEATURES * rows * width) if memory.on_gpu else (MOST, 0)
    each = 8 * (COPIES * weights + 8 * rows * task.num_classes + features)
    return max(1, min(most, memory.size // processes // 4 // each))


def describe(found: Sequence[Sequence[Job]]) -> str:
    """How many runs go into how many stacks, and why the other runs do not; empty where no run is in a stack."""
    together = [stack for stack in found if len(stack) > 1]
    if not together:
        return ""
    runs = sum(len(stack) for stack in together)
    alone = [stack[0].config for stack in found if len(stack) == 1]
    reasons = Counter(_reason(config) for config in alone if config is not None)
    listed = "".join(
        f"; {count} by {'itself' if count == 1 else 'themselves'} ({why})" for why, count in reasons.items()
    )
    return f"{runs} runs in {len(together)} stack{'s' * (len(together) > 1)}{listed}"


def _reason(config: Config) -> str:
    return obstacle(config) or ("stack=1" if config.stack == "1" else "no other run of its shape, or a large one")
