"""Sums over ranks, with real processes; in a single one the identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from li2_lightning.data import Rows
from li2_lightning.distributed import collectives as ranks

ROWS = 7


def test_a_single_process_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert ranks.sum_over_ranks(x)[0] is x
    assert ranks.gather_rows(x) is x
    assert ranks.from_first(x) is x
    assert ranks.share(ROWS) == slice(0, ROWS)
    assert (ranks.rank(), ranks.world_size(), ranks.is_first()) == (0, 1, True)
    mean, variance = ranks.moments_over_ranks(x)
    torch.testing.assert_close(mean, x.mean(dim=0))
    torch.testing.assert_close(variance, x.var(dim=0, correction=0))


def work(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", size)  # type: ignore[no-untyped-call]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    assert ranks.world_size() == 1, "a group that was made for something else is none of ours"
    with ranks.joined():
        check(rank, size)
    assert ranks.world_size() == 1
    distributed.destroy_process_group()


def check(rank: int, size: int) -> None:
    assert (ranks.rank(), ranks.world_size(), ranks.is_first()) == (rank, size, rank == 0)
    # Every row is on one rank, and the shares differ by at most one.
    shares = [list(range(ROWS))[ranks.share(ROWS, of=place)] for place in range(size)]
    assert [row for part in shares for row in part] == list(range(ROWS))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    draw = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS, 4, dtype=torch.float64, generator=draw)
    mine = table[ranks.share(ROWS)]
    single, whole, pairs, hits = ranks.sum_over_ranks(
        torch.full((2,), 0.5),
        torch.tensor([2**50 + rank]),
        torch.complex(table[0], table[1]),
        torch.tensor([True, rank > 0]),
    )
    assert single.dtype == torch.float32
    assert single.tolist() == [size / 2] * 2
    assert whole.tolist() == [size * 2**50 + size * (size - 1) // 2]
    torch.testing.assert_close(pairs, size * torch.complex(table[0], table[1]))
    assert hits.tolist() == [size, size - 1]
    assert ranks.sum_over_ranks() == ()

    assert torch.equal(ranks.gather_rows(mine), table)
    assert torch.equal(ranks.gather_rows(mine.to(torch.complex128)), table.to(torch.complex128))
    torch.testing.assert_close(ranks.row_mean(mine), table.mean(dim=0))
    assert ranks.from_first(torch.tensor([float(rank), 1])).tolist() == [0, 1]
    parameter = torch.nn.Parameter(torch.full((2,), rank + 1j))
    ranks.copy_from_first([parameter])
    assert parameter.tolist() == [1j, 1j]

    batch = Rows(torch.arange(2 * ROWS).view(ROWS, 2), torch.arange(ROWS)).share()
    assert batch.labels.tolist() == shares[rank]
    assert batch.total == ROWS
    for z in (table, torch.complex(table, table.flip(0))):
        compare_moments(z)
    # More ranks than rows: somebody has none.
    assert torch.equal(ranks.gather_rows(table[:1][ranks.share(1)]), table[:1])
    compare_moments(table[:1])


def compare_moments(z: Tensor) -> None:
    """Moments and their gradients are those of all rows in one process."""
    weight = torch.linspace(1, 2, z.numel(), dtype=torch.float64).view_as(z)

    def loss(rows: Tensor, weight: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
        mean, variance = moments
        return (((rows - mean).abs().square() + 1) * torch.rsqrt(variance + 0.1) * weight).sum()

    whole = z.clone().requires_grad_()
    mean = whole.mean(dim=0)
    expected = (mean, (whole - mean).abs().square().mean(dim=0))
    loss(whole, weight, expected).backward()  # type: ignore[no-untyped-call]
    place = ranks.share(len(z))
    mine = z[place].clone().requires_grad_()
    moments = ranks.moments_over_ranks(mine)
    loss(mine, weight[place], moments).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(moments, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert whole.grad is not None
    torch.testing.assert_close(mine.grad, whole.grad[place])


@pytest.mark.parametrize("size", [2, 3])
def test_sums_gathers_and_moments_over_real_processes(size: int, tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, size, str(tmp_path))) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * size
