"""The result of a check of a theorem, and helpers that several checks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.theory.lazy import center
from li2_lightning.theory.reconstruction import (
    pair_targets,
)


@dataclass(frozen=True)
class Check:
    """One row of the table: the claim, the computation, the expected and the observed value, and the verdict."""

    theorem: str
    statement: str
    group: str
    computed: str
    expected: str
    observed: str
    passed: bool


@dataclass(frozen=True)
class Finding:
    """A `Check` without its theorem and group, which the caller adds."""

    statement: str
    computed: str
    expected: str
    observed: str
    passed: bool


def within(statement: str, computed: str, error: Tensor | float, bound: float) -> Finding:
    """A finding that passes if ``error`` is below ``bound``."""
    error = float(error)
    return Finding(statement, computed, f"< {bound:.0e}", f"{error:.1e}", error < bound)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a fixed seed."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def distance(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖/‖expected‖."""
    return float((actual - expected).norm() / expected.norm())


def all_pairs(group: FiniteGroup) -> tuple[Tensor, Tensor]:
    """X (M²×2M) and Ỹ (M²×M) of all pairs of a group."""
    M = group.order
    eye = torch.eye(M, dtype=torch.float64)
    X = torch.cat([eye.repeat_interleave(M, 0), eye.repeat(M, 1)], dim=1)
    return X, center(pair_targets(group))


def shares_of_blocks(types: Sequence[str], shares: Sequence[float]) -> str:
    """Shares of blocks as text, grouped by kind and dimension: ``R1 .235; 2×R2 .412–.416``."""
    by_type: dict[str, list[float]] = {}
    for name, share in zip(types, shares, strict=True):
        by_type.setdefault(name, []).append(share)
    parts = []
    for name, values in by_type.items():
        ends = "–".join(f"{value:.3f}".removeprefix("0") for value in sorted({min(values), max(values)}))
        parts.append(f"{len(values)}×{name} {ends}" if len(values) > 1 else f"{name} {ends}")
    return "; ".join(parts)


def counts_of_blocks(labels: Sequence[str], counts: Sequence[int]) -> str:
    """A number for each block as text, blocks of one kind and dimension with equal numbers once: ``R1 0; C1 2``."""
    types = (f"{label.partition('.')[0]} {count}" for label, count in zip(labels, counts, strict=True))
    return "; ".join(dict.fromkeys(types))


def listed(values: Sequence[float]) -> str:
    """The first six values as text, and how many more there are."""
    return " ".join(f"{value:.6g}" for value in values[:6]) + (
        f" and {len(values) - 6} more" if len(values) > 6 else ""
    )
