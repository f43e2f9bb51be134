"""Random streams that depend on the seed and a purpose, never on the order in which code draws.

A plug-in may draw from the global random sources, so checkpoints hold the state of each source.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def stream(seed: int, purpose: str) -> int:
    """A 63-bit seed for one ``purpose`` ("split", "initial weights", ...), different for each purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for ``purpose``, the same on every machine and rank."""
    return torch.Generator().manual_seed(stream(seed, purpose))


def random_state() -> dict[str, Any]:
    """The state of every global source of random numbers: Python, NumPy, torch, and torch's accelerators in use."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        # Only the legacy function reads the global generator.
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    # Reading the state of a device that is not in use would initialize it.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def plain_random_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of `random_state` in containers and tensors that ``torch.load(..., weights_only=True)`` reads."""
    if not state:
        return {}
    numpy = dict(state["numpy"])
    if numpy["bit_generator"] != "MT19937":
        raise ValueError(f"NumPy's global generator is a {numpy['bit_generator']}; only an MT19937 can be saved.")
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    numpy["state"] = {"key": key, "pos": int(numpy["state"]["pos"])}
    version, words, gauss = state["python"]
    return {**state, "python": [version, torch.from_numpy(np.array(words, dtype=np.int64)), gauss], "numpy": numpy}


def random_state_from(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The state of `random_state` of which `plain_random_state` made ``plain``."""
    if not plain:
        return {}
    version, words, gauss = plain["python"]
    numpy = dict(plain["numpy"])
    numpy["state"] = {**numpy["state"], "key": numpy["state"]["key"].numpy().astype(np.uint32)}
    return {**plain, "python": (version, tuple(words.tolist()), gauss), "numpy": numpy}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set every random source that exists on this machine to a state of `random_state`."""
    if not state:
        return
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, own in enumerate(state.get("cuda", ())):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(own, device)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def keeping_random_state() -> Iterator[None]:
    """Restore the state of the global random sources afterwards; for code that is no part of the run."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
