"""Random streams that depend on the seed and a purpose, never on the order in which code happens to draw."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str) -> int:
    """A 63-bit seed of its own for ``purpose`` ("split", "initial weights", ...)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for ``purpose``, the same on every machine and rank."""
    return torch.Generator().manual_seed(stream(seed, purpose))
