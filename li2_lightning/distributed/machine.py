"""The cores and devices of this machine, and the search path of another process on it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator

import li2_lightning
from li2_lightning.config.schema import Config
from li2_lightning.errors import InputError
from li2_lightning.log import say


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Memory(NamedTuple):
    """Where a run has its tensors: the bytes there, and whether it is a GPU."""

    size: int
    on_gpu: bool


def memory_for(config: Config) -> Memory:
    """The memory on this machine in which a run has its tensors.

    Jobs of a cluster may find a GPU where the process that sends them has none; such a GPU is taken to have 16 GiB.
    """
    kinds = _gpus(config.trainer.accelerator)
    if "cuda" in kinds:
        return Memory(torch.cuda.get_device_properties(0).total_memory, on_gpu=True)
    if "mps" in kinds:
        return Memory(torch.mps.recommended_max_memory(), on_gpu=True)
    if config.trainer.accelerator not in ("cpu", "auto"):
        return Memory(2**34, on_gpu=True)
    return Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), on_gpu=False)


def _gpus(accelerator: str) -> dict[str, type[Accelerator]]:
    """The kinds of GPU that this machine has, of those that a value of ``trainer.accelerator`` allows."""
    kinds: dict[str, type[Accelerator]] = {"mps": MPSAccelerator, "cuda": CUDAAccelerator}
    allowed = kinds if accelerator in ("auto", "gpu") else (accelerator,)
    return {name: kind for name, kind in kinds.items() if name in allowed and kind.is_available()}


def search_path() -> str:
    """PYTHONPATH with which another process finds the same modules as this process.

    Our own folder comes before the current folder, which may hold another train.py. Python's own folders are left out.
    """
    home = str(Path(li2_lightning.__file__).parents[1])
    more = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    return os.pathsep.join(dict.fromkeys([home, *more]))


def check_room(config: Config) -> None:
    """Raise an `InputError` for more ranks than this node has GPUs or, for ranks on the CPU, than usable cores.

    Hundreds of processes on a few cores take a machine down before the first of them trains. A single rank that has no
    device is left to Lightning's own error.
    """
    trainer, kinds = config.trainer, _gpus(config.trainer.accelerator)
    if trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not kinds):
        if trainer.devices > usable_cores() and not trainer.oversubscribe:
            raise InputError(
                f"trainer.devices={trainer.devices} is more than the CPU cores of this node that the run may use, "
                f"{usable_cores()}; lower it, or set trainer.oversubscribe=true to test with more ranks than cores."
            )
        return
    there = next((kind.auto_device_count() for kind in kinds.values()), 0)
    if trainer.devices > there and trainer.devices > 1:
        raise InputError(
            f"trainer.devices={trainer.devices} is more than the GPUs of this node, {there}; lower it, or use "
            "trainer.accelerator=cpu."
        )


def use_threads(threads: int, processes: int) -> None:
    """Set torch's number of threads, and warn where the threads of all ``processes`` outnumber the cores.

    It is no error: 1024 threads on two cores take twenty times as long as one thread, and harm nothing else.
    """
    torch.set_num_threads(threads)
    if threads > 1 and threads * processes > usable_cores():
        of = f" of {processes} ranks" if processes > 1 else ""
        say(
            f"warning: trainer.threads={threads}{of} is more than the CPU cores that the run may use, "
            f"{usable_cores()}; fewer are faster."
        )
