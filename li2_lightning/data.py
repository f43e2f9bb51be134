"""The rows of a task in memory: the whole table is on the device once, as one full batch or in mini-batches.

Every rank keeps all rows (a few integers each) and trains and evaluates on its share of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from li2_lightning.config.checks import load_config
from li2_lightning.config.schema import Config
from li2_lightning.distributed.collectives import share, world_size
from li2_lightning.errors import InputError
from li2_lightning.seeds import generator
from li2_lightning.tasks.splits import Split, build_split, data_seed
from li2_lightning.tasks.tasks import Task, build_task


@dataclass
class Rows:
    """Rows of a task's table on one device.

    Attributes:
        tokens: operands, n × k, int64; N×n×k for the rows of a stack of N runs.
        labels: (n,), int64; (N, n) for a stack.
        total: rows in the shares of all ranks together; n by default.
    """

    tokens: Tensor
    labels: Tensor
    total: int = -1

    def __post_init__(self) -> None:
        if self.total < 0:
            self.total = len(self)

    def __len__(self) -> int:
        return self.labels.shape[-1]

    def of_run(self, run: int) -> Rows:
        """The rows of one run of a stack, as views."""
        return Rows(self.tokens[run], self.labels[run], self.total)

    @classmethod
    def stacked(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several runs, equally many of each, with a leading axis of runs."""
        return cls(torch.stack([rows.tokens for rows in parts]), torch.stack([rows.labels for rows in parts]))

    def take(self, index: Tensor | slice) -> Rows:
        """The rows at ``index``."""
        return Rows(self.tokens[index], self.labels[index])

    def to(self, device: torch.device) -> Rows:
        """The same rows on ``device``."""
        return Rows(self.tokens.to(device), self.labels.to(device), self.total)

    def share(self) -> Rows:
        """This rank's rows, a view; the same object in a single process."""
        return self if world_size() == 1 else replace(self.take(share(len(self))), total=len(self))

    def blocks(self, size: int) -> Iterator[Rows]:
        """The rows in order, ``size`` at a time, as views; without rows, one empty block."""
        for start in range(0, max(len(self), 1), size):
            yield self.take(slice(start, start + size))


class Once:
    """A loader of one batch."""

    def __init__(self, batch: Rows) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Rows]:
        yield self._batch


class TableDataModule(lightning.LightningDataModule):
    """Training and test rows of a task, without loader workers and without copies.

    One Lightning epoch is the whole run: the loader never ends, and the trainer stops at ``max_steps``. The batch of a
    step depends on the seed and the step alone. So a resumed run gets the batches of an uninterrupted run, and several
    ranks divide the batch that a single process would take.

    The loaders of validation and test have one batch, the test rows. That of prediction has the whole table in the
    order of the task.

    Attributes:
        train, test: all rows, on every rank.
        train_share, test_share: this rank's rows. Each row is on one rank; shares differ in size by at most one row.

    Args:
        task: the table.
        split: which of its rows train and which test.
        batch_size: rows a step; None, or a number of at least n, takes all rows.
        label_noise: share ρ of the training rows whose label is wrong: floor(ρn + 1e-9) rows, each with a label drawn
            from the other classes. With the same seed, the wrong labels of a smaller share are among those of a larger.
        seed: seed of the wrong labels and of the order of the mini-batches. Each pass over the rows has its own order,
            and the last batch of a pass has the rows that are left.
    """

    def __init__(
        self, task: Task, split: Split, batch_size: int | None = None, seed: int = 0, label_noise: float = 0.0
    ) -> None:
        super().__init__()
        self.task = task
        self.train = self.train_share = _with_wrong_labels(_rows(task, split.train), task, label_noise, seed)
        self.test = self.test_share = _rows(task, split.test)
        self.seed = seed
        self.batch_size = None if batch_size is None or batch_size >= len(self.train) else batch_size

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any] | None = None) -> TableDataModule:
        """The rows of a run: the sections ``task`` and ``data`` of its config, and its seed.

        Args:
            config: the config, or the keys of it that differ from their defaults.

        Raises:
            InputError: a key or value does not fit, or a file is missing.
        """
        config = config if isinstance(config, Config) else load_config(config or {})
        task, data = build_task(asdict(config.task)), asdict(config.data)
        split = build_split(task, data, config.seed)
        return cls(task, split, config.data.batch_size, data_seed(data, config.seed), config.data.label_noise)

    @cached_property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits that change with the training rows and their labels."""
        digest = hashlib.sha256()
        for values in (self.train.tokens, self.train.labels):
            digest.update(values.cpu().numpy().tobytes())
        return digest.hexdigest()[:10]

    @property
    def is_full_batch(self) -> bool:
        """Whether every batch is the whole `train_share` (the step may get a copy of that object from Lightning)."""
        return self.batch_size is None

    @property
    def steps_per_pass(self) -> int:
        """Updates in one pass over the training rows."""
        return 1 if self.batch_size is None else -(-len(self.train) // self.batch_size)

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        self.train, self.test = self.train.to(device), self.test.to(device)
        self.train_share, self.test_share = self.train.share(), self.test.share()

    def teardown(self, stage: str) -> None:
        # Lightning has the module on the CPU between two calls of a Trainer.
        for name in ("train", "test", "train_share", "test_share"):
            setattr(self, name, getattr(self, name).to(torch.device("cpu")))

    def train_dataloader(self) -> Iterator[Rows]:
        assert self.trainer is not None
        return self._batches(self.trainer)

    def val_dataloader(self) -> Once:
        return Once(self.test_share)

    def test_dataloader(self) -> Once:
        return Once(self.test_share)

    def predict_dataloader(self) -> Once:
        every = np.arange(len(self.task.labels))
        return Once(_rows(self.task, every).to(self.train.labels.device).share())

    def transfer_batch_to_device(self, batch: Rows, device: torch.device, dataloader_idx: int) -> Rows:
        """Return the batch: `setup` has moved all rows once."""
        return batch

    def _batches(self, trainer: lightning.Trainer) -> Iterator[Rows]:
        step = trainer.global_step
        while self.batch_size is None:
            yield self.train_share
        while True:
            current, position = divmod(step, self.steps_per_pass)
            order = torch.randperm(len(self.train), generator=generator(self.seed, f"batches of pass {current}"))
            order = order.to(self.train.labels.device)
            for batch in torch.split(order, self.batch_size)[position:]:
                yield self.train.take(batch).share()
                step += 1


def _with_wrong_labels(rows: Rows, task: Task, share: float, seed: int) -> Rows:
    """The same rows, some with a wrong label; an `InputError` where no other class exists."""
    count = math.floor(share * len(rows) + 1e-9)
    if count == 0:
        return rows
    if task.num_classes < 2:
        raise InputError(f"data.label_noise={share} needs a second class, and {task.name} has one; set it to 0.")
    draw = generator(seed, "label noise")
    chosen = torch.randperm(len(rows), generator=draw)[:count]
    # Drawn for every row, so that a larger share gives the rows of a smaller one the same labels.
    shifts = torch.randint(1, task.num_classes, (len(rows),), generator=draw)
    labels = rows.labels.clone()
    labels[chosen] = (labels[chosen] + shifts[chosen]) % task.num_classes
    return Rows(rows.tokens, labels)


def _rows(task: Task, index: np.ndarray[Any, Any]) -> Rows:
    return Rows(torch.from_numpy(task.operands[index]), torch.from_numpy(task.labels[index]))
