"""The blocked kernel against the plain formula: outputs, gradients, features, whatever the block size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from li2_lightning.networks import kernel
from li2_lightning.networks.activations import ACTIVATIONS, find_activation
from li2_lightning.networks.kernel import block_rows, blocked_outputs, feature_blocks
from li2_lightning.verification.findings import draw

M, K, C, n = 5, 6, 7, 150


def problem(operands: int, dtype: torch.dtype, rows: int = n) -> tuple[Tensor, Tensor, Tensor]:
    """W, V and the index of each row into W."""
    index = torch.randint(M, (rows, operands), generator=torch.Generator().manual_seed(2))
    W, V = draw(operands * M, K, dtype=dtype), draw(K, C, dtype=dtype, seed=1)
    return W.requires_grad_(), V.requires_grad_(), index + M * torch.arange(operands)


def plain(W: Tensor, V: Tensor, index: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """F and Ŷ by autograd's own operations."""
    F = find_activation(name)(torch.stack([W[operand] for operand in index.unbind(dim=1)]).sum(dim=0))
    outputs = F @ V
    return F, outputs.real if outputs.is_complex() else outputs


@pytest.mark.parametrize("block_bytes", [1, 2**21], ids=["32 rows", "one block"])
@pytest.mark.parametrize("operands", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_outputs_gradients_and_features_are_those_of_the_plain_formula(
    name: str, dtype: torch.dtype, operands: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block_bytes)
    W, V, index = problem(operands, dtype)
    F, outputs = plain(W, V, index, name)
    weight = draw(n, C, seed=3)
    expected = torch.autograd.grad((outputs * weight).sum(), (W, V))
    blocked = blocked_outputs(W, V, index, find_activation(name))
    actual = torch.autograd.grad((blocked * weight).sum(), (W, V))
    for one, other in zip((blocked, *actual), (outputs, *expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    blocks = list(feature_blocks(W.detach(), index, find_activation(name)))
    assert len(blocks) == (5 if block_bytes == 1 else 1)
    torch.testing.assert_close(torch.cat(blocks), F.detach(), rtol=1e-14, atol=1e-14)


class Notes:
    """An observer that keeps what it is shown."""

    def __init__(self, columns: Tensor | None) -> None:
        self.columns, self.weighted_sums = columns, torch.empty(0)
        self.first_pass: list[Tensor] = []
        self.second_pass: list[Tensor] = []

    def add_first_pass(self, features: Tensor) -> None:
        self.first_pass.append(features.clone())

    def row_weights(self) -> Tensor | None:
        return self.columns

    def add_second_pass(self, features: Tensor) -> None:
        self.second_pass.append(features.clone())

    def add_weighted_sums(self, sums: Tensor) -> None:
        (self.weighted_sums,) = sums


@pytest.mark.parametrize("columns", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("block_bytes", [1, 2**21], ids=["32 rows", "one block"])
def test_an_observer_sees_the_features_twice_and_gets_its_weighted_sums(
    block_bytes: int, dtype: torch.dtype, columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block_bytes)
    W, V, index = problem(2, dtype)
    F, outputs = plain(W, V, index, "relu")
    weight, weights = draw(n, C, seed=3), None if columns is None else draw(n, columns, seed=4)
    expected = torch.autograd.grad((outputs * weight).sum(), (W, V))
    notes = Notes(weights)
    observed = blocked_outputs(W, V, index, find_activation("relu"), notes)
    for one, other in zip(torch.autograd.grad((observed * weight).sum(), (W, V)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(notes.first_pass), F.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(torch.cat(notes.second_pass), F.detach(), rtol=1e-14, atol=1e-14)
    if weights is not None:
        torch.testing.assert_close(notes.weighted_sums, weights.to(dtype).mT @ F.detach(), rtol=1e-12, atol=1e-12)


class Addresses(Notes):
    """An observer that keeps where the blocks were."""

    def add_first_pass(self, features: Tensor) -> None:
        self.first_pass.append(features)

    def add_second_pass(self, features: Tensor) -> None:
        self.second_pass.append(features)


def test_blocks_of_a_pass_share_memory_and_blocks_handed_out_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK_BYTES", 1)
    W, V, index = problem(2, torch.float64)
    notes = Addresses(None)
    blocked_outputs(W, V, index, find_activation("square"), notes).sum().backward()
    for blocks in (notes.first_pass, notes.second_pass):
        assert len(blocks) == 5
        assert len({block.data_ptr() for block in blocks}) == 1
    handed_out = list(feature_blocks(W.detach(), index, find_activation("square")))
    assert len({block.data_ptr() for block in handed_out}) == 5


def test_large_runs_of_a_stack_have_the_gradients_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has a short block at its end."""
    monkeypatch.setattr(kernel, "BLOCK_BYTES", 1)
    runs = [(draw(2 * M, K, seed=s), draw(K, C, seed=10 + s), problem(2, torch.float64)[2]) for s in range(3)]
    results = []
    for W, V, index in (*runs, tuple(torch.stack(parts) for parts in zip(*runs, strict=True))):
        W, V = W.clone().requires_grad_(), V.clone().requires_grad_()
        outputs = blocked_outputs(W, V, index, find_activation("square"))
        results.append((outputs.detach(), *torch.autograd.grad(outputs.square().sum(), (W, V))))
    *single, stack = results
    for parts, whole in zip(zip(*single, strict=True), stack, strict=True):
        assert torch.equal(torch.stack(parts), whole)


@pytest.mark.parametrize("piece_bytes", [1, 7 * 8 * K])
@pytest.mark.parametrize("runs", [None, 3])
def test_the_size_of_a_piece_changes_nothing(
    piece_bytes: int, runs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    W, V, index = (x if runs is None else torch.stack([x.detach()] * runs) for x in problem(2, torch.float64))
    results = []
    for size in (kernel.PIECE_BYTES, piece_bytes):
        monkeypatch.setattr(kernel, "PIECE_BYTES", size)
        w, v = W.detach().requires_grad_(), V.detach().requires_grad_()
        outputs = blocked_outputs(w, v, index, find_activation("square"))
        results.append((outputs.detach(), *torch.autograd.grad(outputs.square().sum(), (w, v))))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_without_a_gradient_for_v_there_is_no_second_pass() -> None:
    W, V, index = problem(2, torch.float64)
    notes = Notes(draw(n, 1))
    blocked_outputs(W, V.detach(), index, find_activation("square"), notes).sum().backward()
    assert notes.first_pass
    assert not notes.second_pass
    assert not len(notes.weighted_sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision_at_a_size_where_the_products_are_another_librarys(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(40, (700, 2), generator=generator) + torch.tensor([0, 40])
    W, V = draw(80, 640, dtype=torch.promote_types(dtype, torch.float64)), draw(640, 33, dtype=torch.complex128, seed=1)
    V = V if dtype.is_complex else V.real
    results = []
    for to in (dtype, torch.promote_types(dtype, torch.float64)):
        w, v = W.to(dtype).to(to).requires_grad_(), V.to(dtype).to(to).requires_grad_()
        outputs = blocked_outputs(w, v, index, find_activation("square"))
        outputs.square().mean().backward()
        assert w.grad is not None
        assert v.grad is not None
        results.append((outputs.detach(), w.grad, v.grad))
    for single, double in zip(*results, strict=True):
        assert ((single - double).abs().max() / double.abs().max()) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradcheck(name: str, dtype: torch.dtype) -> None:
    W, V, index = problem(2, dtype, rows=40)
    assert torch.autograd.gradcheck(lambda W, V: blocked_outputs(W, V, index, find_activation(name)), (W, V))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ["square", "relu"])
def test_no_rows_have_no_outputs_and_no_gradient(name: str, dtype: torch.dtype) -> None:
    """The share of a rank in a batch that has fewer rows than there are ranks."""
    W, V, index = problem(2, dtype, rows=0)
    outputs = blocked_outputs(W, V, index, find_activation(name))
    assert outputs.shape == (0, C)
    for gradient in torch.autograd.grad(outputs.sum(), (W, V)):
        assert not gradient.any()


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_what_needs_a_gradient_gets_one(needed: tuple[bool, bool]) -> None:
    W, V, index = problem(2, torch.float64)
    matrices = [matrix.detach().requires_grad_(need) for matrix, need in zip((W, V), needed, strict=True)]
    blocked_outputs(*matrices, index, find_activation("square")).sum().backward()  # type: ignore[no-untyped-call]
    assert [matrix.grad is not None for matrix in matrices] == list(needed)


def test_a_table_that_operands_share_collects_the_gradient_of_each() -> None:
    W, V, index = problem(1, torch.float64)
    twice = index.repeat(1, 2)
    blocked = torch.autograd.grad(blocked_outputs(W, V, twice, find_activation("silu")).sum(), W)
    torch.testing.assert_close(blocked, torch.autograd.grad(plain(W, V, twice, "silu")[1].sum(), W))


def test_a_block_has_rows_for_its_bytes_but_never_a_handful() -> None:
    assert block_rows(2048, 4) == 256
    assert block_rows(256, 4) == 2048
    assert block_rows(10**6, 8) == 32
