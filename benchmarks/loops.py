"""Training loops written by hand, to compare with: the default task, network, loss and split, and the same columns.

Each loop is a generator that does one step at a time, so that loops can be run in turns.

* `naive`: what experiment code does: dense one-hot products, one forward pass each to train, to measure the training
  rows and to measure the test rows, and both Gram matrices whole.
* `plain`: rows of W gathered by index, autograd, every row of the table evaluated anew.
* `blocked`: `li2_lightning.kernel` in a loop, test rows evaluated anew: training and evaluation, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from li2_lightning.networks.activations import find_activation
from li2_lightning.networks.kernel import blocked_outputs
from li2_lightning.tasks.splits import split_rows
from li2_lightning.tasks.tasks import build_task


@dataclass
class Problem:
    """Modular addition with its rows and initial weights.

    Attributes:
        tokens, labels: of all N rows (N × 2, N).
        train, test: row numbers.
        W, V: 2M × K and K × M.
    """

    tokens: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor
    W: Tensor
    V: Tensor

    @classmethod
    def draw(cls, order: int, width: int, train_size: int | None = None) -> Problem:
        """The rows of ``task.order=order``, 40 % of them to train on unless ``train_size`` says how many."""
        task = build_task({"name": "cyclic", "order": order})
        split = split_rows(task, seed=0, train_size=train_size)
        draw = torch.Generator().manual_seed(0)
        bounds = (2 * order) ** -0.5, width**-0.5
        W, V = (
            torch.empty(shape).uniform_(-bound, bound, generator=draw).requires_grad_()
            for shape, bound in zip(((2 * order, width), (width, order)), bounds, strict=True)
        )
        tokens, labels = torch.from_numpy(task.operands), torch.from_numpy(task.labels)
        return cls(tokens, labels, torch.from_numpy(split.train), torch.from_numpy(split.test), W, V)

    @property
    def order(self) -> int:
        """M."""
        return self.V.shape[1]

    @property
    def flops(self) -> int:
        """Of the products of one step: three with the training rows, one with the test rows."""
        width, order = self.V.shape
        return 2 * width * order * (3 * len(self.train) + len(self.test))


def mse(outputs: Tensor, labels: Tensor) -> Tensor:
    """The class-centred loss of the default run."""
    classes = outputs.shape[1]
    targets = functional.one_hot(labels, classes).to(outputs.dtype) - 1 / classes
    return (outputs - outputs.mean(dim=1, keepdim=True) - targets).square().sum(dim=1).mean()


def _accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(dim=1) == labels).double().mean()


def naive(problem: Problem, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Dense one-hots, three forward passes, F̃ᵀF̃ and FFᵀ whole."""
    p = problem
    X = functional.one_hot(p.tokens, p.order).flatten(1).to(p.W.dtype)

    def features(rows: Tensor) -> Tensor:
        return (X[rows] @ p.W).square()

    while True:
        optimizer.zero_grad()
        mse(features(p.train) @ p.V, p.labels[p.train]).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for rows in (p.train, p.test):
                outputs = features(rows) @ p.V
                mse(outputs, p.labels[rows]), _accuracy(outputs, p.labels[rows])
            F = features(p.train)
            centered = F - F.mean(dim=0)
            centered.T @ centered, F @ F.T
        optimizer.step()
        yield


def plain(problem: Problem, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Gathered rows and autograd; all rows of the table are evaluated."""
    p = problem

    def outputs(rows: Tensor) -> Tensor:
        halves = torch.split(p.W, p.order)
        z = functional.embedding(p.tokens[rows, 0], halves[0]) + functional.embedding(p.tokens[rows, 1], halves[1])
        return z.square() @ p.V

    everything = torch.arange(len(p.labels))
    while True:
        optimizer.zero_grad()
        mse(outputs(p.train), p.labels[p.train]).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            whole = outputs(everything)
            for rows in (p.train, p.test):
                mse(whole[rows], p.labels[rows]), _accuracy(whole[rows], p.labels[rows])
        optimizer.step()
        yield


def blocked(problem: Problem, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The kernel by hand: training and evaluation at their least."""
    p, square = problem, find_activation("square")
    offsets = torch.tensor([0, p.order])
    index = {rows: p.tokens[rows] + offsets for rows in (p.train, p.test)}
    labels = {rows: p.labels[rows] for rows in (p.train, p.test)}
    while True:
        optimizer.zero_grad()
        outputs = blocked_outputs(p.W, p.V, index[p.train], square)
        loss = mse(outputs, labels[p.train])
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            _accuracy(outputs, labels[p.train])
            outputs = blocked_outputs(p.W, p.V, index[p.test], square)
            mse(outputs, labels[p.test]), _accuracy(outputs, labels[p.test])
        optimizer.step()
        yield


LOOPS: dict[str, Callable[[Problem, torch.optim.Optimizer], Iterator[None]]] = {
    "naive loop": naive,
    "plain loop": plain,
    "blocked loop": blocked,
}
