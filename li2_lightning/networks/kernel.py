"""Ŷ = σ(XW)V forward and backward in blocks of rows that stay in cache.

Plain autograd writes z, F and their gradients (n × K each) to memory and reads them back. Here a block of rows goes
through every operation while it is in cache. The backward pass computes z again instead of storing it, so Ŷ is the only
array with a row for each sample. Products are those of the plain formula, summed block by block; results differ from it
by rounding alone.

Complex numbers are stored as pairs of real ones: Re(FV) = [Re F, Im F]·[Re V; −Im V] is one real product of twice the
width, half the work of a complex one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from li2_lightning.networks.activations import Activation
from li2_lightning.networks.matmul import product

# Bytes of one block of features: a block, its gradient and the readout fit a core's share of the cache. At K=2048 a
# step takes the same time from half to twice this size, and longer above it.
BLOCK_BYTES = 2**21


class Observer(Protocol):
    """Receives every block of features (b × K) in order, while the block is in cache; it must not change a block.

    The forward pass is the first pass over the features. The backward pass is the second one, since the gradient of V
    needs the features again; where V has no gradient there is no second pass.
    """

    def add_first_pass(self, features: Tensor) -> None:
        """Receive the next rows in the forward pass."""

    def row_weights(self) -> Tensor | None:
        """Real weights of the rows, n × m, or None; the backward pass computes their products with F at little cost."""

    def add_second_pass(self, features: Tensor) -> None:
        """Receive the next rows in the backward pass."""

    def add_weighted_sums(self, sums: Tensor) -> None:
        """Receive row_weightsᵀF over all rows, m × K."""


def blocked_outputs(
    table: Tensor, readout: Tensor, index: Tensor, activation: Activation, observe: Observer | None = None
) -> Tensor:
    """Re(σ(XW)V), n × C, differentiable once in W and V.

    Args:
        table: W, d × K, real or complex.
        readout: V, K × C, of the same dtype.
        index: the rows of W that make up each row of XW, n × k.
        activation: σ.
        observe: receives the features block by block.
    """
    is_complex = table.is_complex()
    if is_complex:
        table = torch.view_as_real(table).flatten(1)
        readout = torch.view_as_real(readout.conj().resolve_conj()).transpose(1, 2).flatten(0, 1)
    outputs: Tensor = _BlockedOutputs.apply(table, readout, index, activation, is_complex, observe)  # type: ignore[no-untyped-call]
    return outputs


def feature_blocks(table: Tensor, index: Tensor, activation: Activation) -> Iterator[Tensor]:
    """σ(XW) block by block, each b × K, bit for bit the features inside `blocked_outputs`; arguments as there."""
    real = torch.view_as_real(table).flatten(1) if table.is_complex() else table
    for rows in _blocks(real, index):
        features = _activate(activation, _gather(real, rows), table.is_complex())
        yield _pairs(features) if table.is_complex() else features


def block_rows(width: int, item_size: int) -> int:
    """Rows of a block of features of this width (real numbers of ``item_size`` bytes)."""
    return max(32, BLOCK_BYTES // (width * item_size))


class _BlockedOutputs(torch.autograd.Function):
    """`blocked_outputs` on real matrices."""

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
        # Transposed, (C × K)(K × b): a product whose long side is contiguous in the result takes a third less time
        # than (b × K)(K × C) where C is no multiple of the vector length.
        transposed = readout.mT.contiguous()
        outputs = []
        for rows in _blocks(table, index):
            features = _activate(activation, _gather(table, rows), is_complex)
            outputs.append(product(transposed, features.mT).mT)
            if observe is not None:
                observe.add_first_pass(_pairs(features) if is_complex else features)
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        table, readout, index = ctx.saved_tensors
        classes, observe = gradient.shape[1], ctx.observe if ctx.needs_input_grad[1] else None
        weights = None if observe is None else observe.row_weights()
        by_row = gradient if weights is None else torch.cat([gradient, weights.to(gradient.dtype)], dim=1)
        for_table = torch.zeros_like(table) if ctx.needs_input_grad[0] else None
        products = table.new_zeros(by_row.shape[1], table.shape[1])
        size = block_rows(table.shape[1], table.element_size())
        # ``gradient`` is split by itself, not taken as the first columns of ``by_row``: with a stride the last bit of
        # MKL's product depends on the memory address.
        shares = zip(torch.split(gradient, size), torch.split(by_row, size), strict=True)
        for rows, (by_output, columns) in zip(_blocks(table, index), shares, strict=True):
            z = _gather(table, rows)
            if ctx.needs_input_grad[1]:
                features = _activate(ctx.activation, z, ctx.is_complex)
                products.add_(product(columns.mT, features))
                if observe is not None:
                    observe.add_second_pass(_pairs(features) if ctx.is_complex else features)
            if for_table is not None:
                by_feature = _differentiate(ctx.activation, z, product(by_output, readout.mT), ctx.is_complex)
                for operand in rows.unbind(dim=1):
                    for_table.index_add_(0, operand, by_feature)
        if observe is not None and weights is not None:
            observe.add_weighted_sums(_pairs(products[classes:]) if ctx.is_complex else products[classes:])
        return for_table, products[:classes].mT if ctx.needs_input_grad[1] else None, None, None, None, None


def _blocks(table: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    return torch.split(index, block_rows(table.shape[1], table.element_size()))


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """XW of some rows, b × K: each row is the sum of k rows of the table."""
    return functional.embedding_bag(rows, table, mode="sum")


def _activate(activation: Activation, z: Tensor, is_complex: bool) -> Tensor:
    """σ(z); with ``is_complex`` the columns are pairs (real part, imaginary part)."""
    if is_complex and activation.polynomial:
        return torch.view_as_real(activation.function(_pairs(z))).flatten(1)
    return activation.function(z)


def _differentiate(activation: Activation, z: Tensor, by_feature: Tensor, is_complex: bool) -> Tensor:
    """∂L/∂z from ∂L/∂F (``by_feature``, overwritten); for complex z it is ∂L/∂Re z + i∂L/∂Im z."""
    if is_complex and activation.polynomial:
        pairs = _pairs(by_feature)
        pairs.mul_(activation.derivative(_pairs(z)).conj())
        return by_feature
    return activation.backward(z, by_feature)


def _pairs(columns: Tensor) -> Tensor:
    """b × 2K real columns as b × K complex ones; a view."""
    return torch.view_as_complex(columns.view(len(columns), columns.shape[1] // 2, 2))
