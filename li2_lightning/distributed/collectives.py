"""Sums, means and gathers over the ranks of one run.

Rows are divided among the ranks; weights are the same on each. In a single process every function here returns its
input without communication. All ranks must call the same functions in the same order, with tensors of the same shapes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

_rank, _world_size = 0, 1


def rank() -> int:
    """This process's number, from 0."""
    return _rank


def world_size() -> int:
    """The number of processes of this run; 1 also where torch.distributed was initialized for another purpose."""
    return _world_size


def is_first() -> bool:
    """Whether this process is the first rank, which decides, writes, logs and prints."""
    return _rank == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within the block, the functions of this module use the default process group, which must be initialized."""
    global _rank, _world_size
    before = _rank, _world_size
    _rank, _world_size = distributed.get_rank(), distributed.get_world_size()
    try:
        yield
    finally:
        _rank, _world_size = before


def share(rows: int, of: int | None = None) -> slice:
    """The consecutive rows, out of ``rows``, of this rank or of rank ``of``; shares differ by at most one row."""
    place = _rank if of is None else of
    return slice(rows * place // _world_size, rows * (place + 1) // _world_size)


def sum_over_ranks(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The sum of each tensor over the ranks, in one reduction for all tensors; each keeps its shape and dtype.

    Every rank gets the same bits. Gradients flow: the gradient of a sum is the sum of all ranks' gradients, so each
    rank may differentiate its own part of a loss. Integers are exact up to 2⁵³.
    """
    if _world_size == 1 or not tensors:
        return tensors
    real = [torch.view_as_real(t.contiguous()) if t.is_complex() else t for t in tensors]
    kinds = [t.dtype if t.is_floating_point() else torch.float64 for t in real]
    carrier = functools.reduce(torch.promote_types, kinds)
    flat: Tensor = _Sum.apply(torch.cat([t.reshape(-1).to(carrier) for t in real]))  # type: ignore[no-untyped-call]
    sums: list[Tensor] = []
    for tensor, part, piece in zip(tensors, real, torch.split(flat, [t.numel() for t in real]), strict=True):
        # A sum of booleans is a count.
        dtype = torch.int64 if tensor.dtype == torch.bool else part.dtype
        total = piece.to(dtype).reshape(part.shape)
        sums.append(torch.complex(total[..., 0], total[..., 1]) if tensor.is_complex() else total)
    return tuple(sums)


def moments_over_ranks(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over the rows (…×n×K) of every rank, each (…, K); gradients flow through both.

    torch's SyncBatchNorm does the same on accelerators only.
    """
    if _world_size == 1:
        mean = z.mean(dim=-2)
        return mean, (z - mean.unsqueeze(-2)).abs().square().mean(dim=-2)
    total, count = sum_over_ranks(z.sum(dim=-2), torch.tensor(z.shape[-2], device=z.device))
    mean = total / count
    (squares,) = sum_over_ranks((z - mean.unsqueeze(-2)).abs().square().sum(dim=-2))
    return mean, squares / count


def row_mean(rows: Tensor) -> Tensor:
    """The mean over the rows (…×n×C) of every rank, without gradient; (…, C)."""
    rows = rows.detach()
    if _world_size == 1:
        return rows.mean(dim=-2)
    total, count = sum_over_ranks(rows.sum(dim=-2), torch.tensor(rows.shape[-2], device=rows.device))
    return total / count


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of every rank, in the order that a single process has them; without gradient."""
    if _world_size == 1:
        return rows
    counts = torch.zeros(_world_size, dtype=torch.int64, device=rows.device)
    counts[_rank] = len(rows)
    (counts,) = sum_over_ranks(counts)
    sizes = counts.tolist()
    start = sum(sizes[:_rank])
    whole = rows.new_zeros(sum(sizes), *rows.shape[1:])
    whole[start : start + len(rows)] = rows.detach()
    return sum_over_ranks(whole)[0]


def from_first(values: Tensor) -> Tensor:
    """The first rank's values on every rank, so that all ranks make the same decision from them."""
    if _world_size > 1:
        values = values.contiguous()
        distributed.broadcast(torch.view_as_real(values) if values.is_complex() else values, src=0)
    return values


@torch.no_grad()
def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Overwrite ``tensors`` by the first rank's."""
    for tensor in tensors if _world_size > 1 else ():
        tensor.copy_(from_first(tensor.detach().clone()))


class _Sum(torch.autograd.Function):
    """All-reduce, with the all-reduce of the gradients as its gradient."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        # A copy: torch.cat of a single tensor may return that tensor.
        total = flat.detach().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total
