"""Ŷ = σ(XW)V forward and backward in blocks of rows that stay in cache.

Plain autograd writes z, F and their gradients (n × K each) to memory and reads them back. Here a block of rows goes
through every operation while it is in cache. The backward pass computes z again instead of storing it, so Ŷ is the only
array with a row for each sample. Products are those of the plain formula, summed block by block; results differ from it
by rounding alone.

All blocks of a pass are in the same memory. σ is written over z, piece by piece, so that a piece stays in cache between
two operations. With memory of its own for every block and operand the heap grew to twice what was in use, since glibc's
malloc seldom gives an aligned array the place of an equal one, and the blocks were out of cache.

Complex numbers are stored as pairs of real ones: Re(FV) = [Re F, Im F]·[Re V; −Im V] is one real product of twice the
width, half the work of a complex one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from li2_lightning._compat import kept_with
from li2_lightning.networks.activations import Activation
from li2_lightning.networks.matmul import add_product, arranged, product, write_product

# Bytes of one block of features: a block, its gradient and the readout fit a core's share of the cache. At K=2048 a
# step takes the same time from half to twice this size, and longer above it.
BLOCK_BYTES = 2**21
# Bytes of a piece of a block, for operations on single elements.
PIECE_BYTES = 2**19


# The runs of a stack that a block belongs to: one run, or consecutive runs of which the block has all rows.
Runs = int | slice


class Places:
    """The runs and rows of blocks of features that follow each other.

    Args:
        rows: the number of rows of each run.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._run = self._row = 0

    def next(self, block: Tensor) -> tuple[Runs, slice]:
        """The place of the next block: rows of one run (b × K), or all rows of the next runs (g × n × K)."""
        run, row = self._run, self._row
        if block.ndim > 2:
            self._run += len(block)
            return slice(run, self._run), slice(None)
        self._row += len(block)
        if self._row >= self._rows:
            self._run, self._row = run + 1, 0
        return run, slice(row, row + len(block))


class Observer(Protocol):
    """Receives every block of features in order, while the block is in cache.

    An observer must neither change nor keep a block, since the next block takes its memory.
    A block has some rows of one run (b × K), or all rows of the next runs of a stack (g × n × K); `Places` tells which.
    The forward pass is the first pass over the features. The backward pass is the second one, since the gradient of V
    needs the features again; where V has no gradient there is no second pass.
    """

    def add_first_pass(self, features: Tensor) -> None:
        """Receive the next rows in the forward pass."""

    def row_weights(self) -> Tensor | None:
        """Real weights of the rows, …×n×m, or None; the backward pass computes their products with F at little cost."""

    def add_second_pass(self, features: Tensor) -> None:
        """Receive the next rows in the backward pass."""

    def add_weighted_sums(self, sums: Tensor) -> None:
        """Receive row_weightsᵀF over all rows, N×m×K; N = 1 for a run by itself."""


def blocked_outputs(
    table: Tensor, readout: Tensor, index: Tensor, activation: Activation, observe: Observer | None = None
) -> Tensor:
    """Re(σ(XW)V), …×n×C, differentiable once in W and V.

    Every argument may have a leading axis of runs. Small runs then share a block, and large runs have blocks of rows as
    a single run has.

    Args:
        table: W, …×d×K, real or complex.
        readout: V, …×K×C, of the same dtype.
        index: the rows of W that make up each row of XW, …×n×k.
        activation: σ.
        observe: receives the features block by block.
    """
    is_complex = table.is_complex()
    if is_complex:
        table = torch.view_as_real(table).flatten(-2)
        readout = torch.view_as_real(readout.conj().resolve_conj()).transpose(-1, -2).flatten(-3, -2)
    if table.ndim > 2:
        return _apply(table, readout, index, activation, is_complex, observe)
    return _apply(table.unsqueeze(0), readout.unsqueeze(0), index, activation, is_complex, observe).squeeze(0)


def feature_blocks(table: Tensor, index: Tensor, activation: Activation) -> Iterator[Tensor]:
    """σ(XW) block by block, bit for bit the features inside `blocked_outputs`; arguments as there.

    A block has b × K features of one run, or g × n × K of the next runs of a stack.
    """
    is_complex = table.is_complex()
    real = torch.view_as_real(table).flatten(-2) if is_complex else table
    for block in _blocks(real if real.ndim > 2 else real[None], index, shared=False):
        features = block.features(activation, is_complex)
        yield _pairs(features) if is_complex else features


def block_rows(width: int, item_size: int) -> int:
    """Rows of a block of features of this width (real numbers of ``item_size`` bytes)."""
    return max(32, BLOCK_BYTES // (width * item_size))


def piece_rows(width: int, item_size: int) -> int:
    """Rows of a piece of a block; arguments as for `block_rows`."""
    return max(1, PIECE_BYTES // (width * item_size))


@dataclass(slots=True)
class _Block:
    """Some rows of one run, or all rows of some runs.

    Attributes:
        runs: the run or the runs.
        rows: some rows of one run, or all rows of several runs.
        index: the rows of ``table`` whose sums are the rows of XW, k × b, run after run.
        table: the tables of all runs under each other.
        each: the number of rows of each run in this block.
        space: memory for b × K numbers.
        spare: memory for a piece of them.
    """

    runs: Runs
    rows: slice
    index: Tensor
    table: Tensor
    each: int
    space: Tensor
    spare: Tensor

    def gather(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pieces of XW in ``space``, with their part of ``index``. A row is the sum of k rows of the table."""
        rows = len(self.spare)
        pieces, parts = torch.split(self.space, rows), torch.split(self.index, rows, dim=1)
        for piece, index in zip(pieces, parts, strict=True):
            first, *others = index
            torch.index_select(self.table, 0, first, out=piece)
            for operand in others:
                piece.add_(torch.index_select(self.table, 0, operand, out=self.spare[: len(piece)]))
            yield piece, index

    def features(self, activation: Activation, is_complex: bool) -> Tensor:
        """σ(XW) in ``space``, with the runs as a leading axis, where the block has several."""
        for piece, _ in self.gather():
            _activate(activation, piece, is_complex)
        return self.whole(self.space)

    def whole(self, rows: Tensor) -> Tensor:
        """Values of these rows (b × …) with the runs as a leading axis, where the block has several."""
        return rows if isinstance(self.runs, int) else rows.unflatten(0, (-1, self.each))  # type: ignore[no-untyped-call]

    def of(self, values: Tensor) -> Tensor:
        """These rows of values of all rows (N × n × …)."""
        return values[self.runs, self.rows] if isinstance(self.runs, int) else values[self.runs]


def _rows(table: Tensor, index: Tensor) -> int:
    """The number of rows of the largest block of one run."""
    return min(block_rows(table.shape[-1], table.element_size()), index.shape[-2])


def _divide(index: Tensor, runs: int, tokens: int, size: int) -> Iterator[tuple[Runs, slice, Tensor, int]]:
    """The runs and rows of each block, its index into the tables of all runs under each other, and its rows of a run.

    Args:
        index: (N ×) n × k.
        runs: N.
        tokens: the rows of the table of a run.
        size: the rows of a block.
    """
    index = index if index.ndim > 2 else index[None]
    n = index.shape[1]
    if runs > 1:
        index = index + tokens * torch.arange(runs, device=index.device)[:, None, None]
    if runs == 1 or 2 * n > size:
        places: list[tuple[Runs, slice]] = [
            (run, slice(start, start + size)) for run in range(runs) for start in range(0, max(n, 1), size)
        ]
    else:
        together = size // max(n, 1)
        places = [(slice(start, start + together), slice(None)) for start in range(0, runs, together)]
    for of, rows in places:
        part = index[of, rows]
        # A copy also where the layout is right, since a view would keep the index alive.
        yield of, rows, part.flatten(0, -2).mT.clone(memory_format=torch.contiguous_format), part.shape[-2]


def _blocks(table: Tensor, index: Tensor, shared: bool = True) -> Iterator[_Block]:
    """The rows of a stack (W: N × d × K, index: (N ×) n × k) in blocks that stay in cache.

    Args:
        shared: whether each block takes the memory of the one before it.
    """
    width, item = table.shape[-1], table.element_size()
    flat = table.flatten(0, 1)
    shape = len(table), table.shape[1], block_rows(width, item)
    divided = kept_with(index, ("blocks", *shape), lambda: list(_divide(index, *shape)))
    # The first block is the largest.
    largest = divided[0][2].shape[1]
    spare = flat.new_empty(max(1, min(piece_rows(width, item), largest)), width)
    memory = flat.new_empty(largest, width) if shared else None
    for of, rows, operands, each in divided:
        space = flat.new_empty(operands.shape[1], width) if memory is None else memory[: operands.shape[1]]
        yield _Block(of, rows, operands, flat, each, space, spare)


class _BlockedOutputs(torch.autograd.Function):
    """`blocked_outputs` on real matrices of a stack."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        readout: Tensor,
        index: Tensor,
        activation: Activation,
        is_complex: bool,
        observe: Observer | None,
    ) -> Tensor:
        ctx.save_for_backward(table, readout, index)
        ctx.activation, ctx.is_complex, ctx.observe = activation, is_complex, observe
        outputs = table.new_empty(len(table), index.shape[-2], readout.shape[-1])
        readout = arranged(readout, _rows(table, index))
        for block in _blocks(table, index):
            features = block.features(activation, is_complex)
            write_product(block.of(outputs), features, readout[block.runs])
            if observe is not None:
                observe.add_first_pass(_pairs(features) if is_complex else features)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        table, readout, index = ctx.saved_tensors
        classes, observe = gradient.shape[-1], ctx.observe if ctx.needs_input_grad[1] else None
        weights = None if observe is None else observe.row_weights()
        # ``gradient`` stays a tensor of its own: with a stride the last bit of MKL's product depends on the memory
        # address.
        gradient = gradient.contiguous()
        by_row = gradient
        if weights is not None:
            by_row = torch.cat(
                [gradient, weights.view(*gradient.shape[:2], weights.shape[-1]).to(gradient.dtype)], dim=-1
            )
        for_table = torch.zeros_like(table).flatten(0, 1) if ctx.needs_input_grad[0] else None
        products = table.new_zeros(len(table), by_row.shape[-1], table.shape[-1])
        memory: Tensor | None = None
        readout = arranged(readout, _rows(table, index))
        for block in _blocks(table, index):
            by_pieces: Iterable[Tensor | None] = repeat(None)
            if for_table is not None:
                # The first block is the largest.
                memory = torch.empty_like(block.space) if memory is None else memory
                space = memory[: len(block.space)]
                by_feature = product(block.of(gradient), readout[block.runs].mT, block.whole(space))
                by_pieces = torch.split(by_feature.view_as(space), len(block.spare))
            for (z, operands), by_piece in zip(block.gather(), by_pieces, strict=False):
                if for_table is not None and by_piece is not None:
                    by_z = _differentiate(ctx.activation, z, by_piece, ctx.is_complex)
                    for operand in operands:
                        for_table.index_add_(0, operand, by_z)
                if ctx.needs_input_grad[1]:
                    _activate(ctx.activation, z, ctx.is_complex)
            if ctx.needs_input_grad[1]:
                features = block.whole(block.space)
                add_product(products[block.runs], block.of(by_row).mT, features)
                if observe is not None:
                    observe.add_second_pass(_pairs(features) if ctx.is_complex else features)
        if observe is not None and weights is not None:
            sums = products[:, classes:]
            observe.add_weighted_sums(_pairs(sums) if ctx.is_complex else sums)
        for_readout = products[:, :classes].mT if ctx.needs_input_grad[1] else None
        return None if for_table is None else for_table.view_as(table), for_readout, None, None, None, None


_apply: Callable[..., Tensor] = _BlockedOutputs.apply


def _activate(activation: Activation, z: Tensor, is_complex: bool) -> None:
    """Replace z by σ(z); with ``is_complex`` the columns are pairs (real part, imaginary part)."""
    activation.overwrite(_pairs(z) if is_complex and activation.polynomial else z)


def _differentiate(activation: Activation, z: Tensor, by_feature: Tensor, is_complex: bool) -> Tensor:
    """∂L/∂z from ∂L/∂F (``by_feature``, overwritten); for complex z it is ∂L/∂Re z + i∂L/∂Im z."""
    if is_complex and activation.polynomial:
        pairs = _pairs(by_feature)
        pairs.mul_(activation.derivative(_pairs(z)).conj())
        return by_feature
    return activation.backward(z, by_feature)


def _pairs(columns: Tensor) -> Tensor:
    """…×2K real columns as …×K complex ones; a view."""
    return torch.view_as_complex(columns.unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]
