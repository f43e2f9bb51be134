"""The rows in memory: full batches without copies, mini-batches that cover every row, streams that a seed fixes."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from li2_lightning import groups
from li2_lightning.data import Rows, TableDataModule
from li2_lightning.errors import InputError
from li2_lightning.seeds import generator, stream
from li2_lightning.tasks.splits import Split
from li2_lightning.tasks.tasks import group_task

TASK = group_task(groups.cyclic(5))
SPLIT = Split(np.arange(0, 22, 2), np.arange(1, 25, 2))  # 11 training rows


def module(batch_size: int | None, seed: int = 0) -> TableDataModule:
    return TableDataModule(TASK, SPLIT, batch_size, seed)


def batches(data: TableDataModule, count: int, step: int = 0) -> list[Rows]:
    """The next ``count`` batches of a trainer that stands at ``step``."""
    data.trainer = SimpleNamespace(global_step=step)  # type: ignore[assignment]
    return list(islice(data.train_dataloader(), count))


def numbers(rows: Rows) -> list[int]:
    """Which rows of the table these are."""
    return (5 * rows.tokens[:, 0] + rows.tokens[:, 1]).tolist()


def test_the_rows_are_those_of_the_split_with_their_labels() -> None:
    data = module(None)
    assert numbers(data.train) == SPLIT.train.tolist()
    assert numbers(data.test) == SPLIT.test.tolist()
    for rows in (data.train, data.test):
        assert rows.labels.tolist() == [(a + b) % 5 for a, b in rows.tokens.tolist()]


def noisy(share: float, seed: int = 0) -> Tensor:
    """Which training rows have a wrong label, as the shift of the label; 0 for a right one."""
    data = TableDataModule(TASK, SPLIT, None, seed, share)
    assert numbers(data.train) == SPLIT.train.tolist()
    assert data.test.labels.tolist() == module(None).test.labels.tolist()
    return (data.train.labels - module(None).train.labels) % 5


@pytest.mark.parametrize(("share", "wrong"), [(0.0, 0), (0.09, 0), (0.1, 1), (3 / 11, 3), (0.5, 5), (1.0, 11)])
def test_a_share_of_the_training_rows_has_a_wrong_label(share: float, wrong: int) -> None:
    assert (noisy(share) > 0).sum() == wrong


def test_wrong_labels_depend_on_the_seed_and_grow_with_the_share() -> None:
    assert torch.equal(noisy(0.5), noisy(0.5))
    assert not torch.equal(noisy(0.5), noisy(0.5, seed=1))
    few, many = noisy(0.3), noisy(0.8)
    assert torch.equal(few[few > 0], many[few > 0])
    assert set(noisy(1.0).tolist()) == {1, 2, 3, 4}


def test_a_single_class_has_no_wrong_label() -> None:
    task = group_task(groups.cyclic(1))
    with pytest.raises(InputError, match=r"data\.label_noise=1\.0 needs a second class"):
        TableDataModule(task, Split(np.array([0]), np.array([0])), None, 0, 1.0)


@pytest.mark.parametrize("batch_size", [None, 11, 500])
def test_a_full_batch_is_the_very_same_object_each_step(batch_size: int | None) -> None:
    data = module(batch_size)
    assert data.steps_per_pass == 1
    assert all(batch is data.train for batch in batches(data, 3))


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 3]), (10, [10, 1]), (1, [1] * 11)])
def test_each_pass_covers_every_row_once_in_an_order_of_its_own(batch_size: int, sizes: list[int]) -> None:
    data = module(batch_size)
    assert data.steps_per_pass == len(sizes)
    orders = []
    for part in range(3):
        served = batches(data, len(sizes), step=part * len(sizes))
        assert [len(batch) for batch in served] == sizes
        assert all(batch.labels.tolist() == [(a + b) % 5 for a, b in batch.tokens.tolist()] for batch in served)
        orders.append([row for batch in served for row in numbers(batch)])
        assert sorted(orders[-1]) == SPLIT.train.tolist()
    assert orders[0] != orders[1] != orders[2]


def test_a_resumed_run_meets_the_batches_it_would_have_met() -> None:
    whole = [numbers(batch) for batch in batches(module(4), 10)]
    for step in range(1, 10):
        assert [numbers(batch) for batch in batches(module(4), 10 - step, step=step)] == whole[step:]


def test_the_order_depends_on_the_seed() -> None:
    assert [numbers(b) for b in batches(module(4), 3)] == [numbers(b) for b in batches(module(4), 3)]
    assert [numbers(b) for b in batches(module(4), 3)] != [numbers(b) for b in batches(module(4, seed=1), 3)]


def test_blocks_are_views_that_cover_the_rows_in_order() -> None:
    rows = module(None).train
    blocks = list(rows.blocks(4))
    assert [len(block) for block in blocks] == [4, 4, 3]
    assert [row for block in blocks for row in numbers(block)] == numbers(rows)
    assert blocks[1].tokens.untyped_storage().data_ptr() == rows.tokens.untyped_storage().data_ptr()


def draws(seed: int, purpose: str) -> list[Any]:
    values: Tensor = torch.rand(3, generator=generator(seed, purpose))
    return values.tolist()  # type: ignore[no-any-return]


def test_a_stream_depends_on_seed_and_purpose_alone() -> None:
    assert draws(0, "split") == draws(0, "split")
    assert len({tuple(draws(seed, purpose)) for seed in (0, 1) for purpose in ("split", "initial weights")}) == 4
    # 1/… and 11/… must not meet, and the value is for ever: a run of today is that of next year.
    assert stream(1, "1/x") != stream(11, "/x")
    assert stream(0, "initial weights") == 1127407204323782063


def test_a_run_trains_on_wrong_labels_and_is_tested_on_right_ones(tiny_run: Any) -> None:
    clean, wrong = tiny_run("max_steps=1", "name=clean"), tiny_run("max_steps=1", "data.label_noise=0.5", "name=wrong")
    assert clean.directory.name != wrong.directory.name
    assert (clean.data.train.labels != wrong.data.train.labels).sum() == len(clean.data.train) // 2
    assert wrong.rows[0]["test/loss"] == clean.rows[0]["test/loss"]
    assert wrong.rows[0]["train/loss"] != clean.rows[0]["train/loss"]
