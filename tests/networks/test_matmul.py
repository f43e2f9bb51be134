"""Products by oneDNN and by torch's own library: the same to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from li2_lightning.networks import libraries
from li2_lightning.networks.libraries import ONEDNN, TORCH, use_library
from li2_lightning.networks.matmul import SMALL, add_product, arranged, product, squared_magnitudes, write_product
from li2_lightning.verification.findings import draw

m, k, n = 100, 150, 160
assert m * k * n > SMALL


@pytest.fixture(autouse=True, params=[ONEDNN, TORCH])
def _library(request: pytest.FixtureRequest) -> Iterator[None]:
    use_library(request.param)
    yield
    use_library(None)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda matrix: matrix.contiguous(),
    "columns": lambda matrix: matrix.mT.contiguous().mT,
    "cut out": lambda matrix: torch.cat([matrix, matrix], dim=1)[:, : matrix.shape[1]],
    "every other": lambda matrix: torch.repeat_interleave(matrix, 2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("right_layout", LAYOUTS)
@pytest.mark.parametrize("left_layout", LAYOUTS)
def test_float32_of_any_layout(left_layout: str, right_layout: str) -> None:
    left, right = draw(m, k), draw(k, n, seed=1)
    found = product(LAYOUTS[left_layout](left.float()), LAYOUTS[right_layout](right.float()))
    assert found.dtype is torch.float32
    # Rounding of sums of 150 products of size 1.
    torch.testing.assert_close(found.double(), left.float().double() @ right.float().double(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize(("rows", "columns"), [(m, n), (n, m), (2 * n, 5), (3, 4)], ids=str)
def test_a_product_is_written_to_given_memory_or_added_to_it(rows: int, columns: int, layout: str) -> None:
    left, right = draw(rows, k).float(), LAYOUTS[layout](draw(k, columns, seed=1).float())
    start = draw(rows, columns, seed=2).float()
    expected = left.double() @ right.double()
    out, total, space = start.clone(), start.clone(), start.clone()
    write_product(out, left, right)
    add_product(total, left, right)
    for found, sums in ((out, expected), (product(left, right, space), expected), (total, start + expected)):
        torch.testing.assert_close(found.double(), sums.double(), rtol=0, atol=5e-5)


def test_arranging_changes_the_layout_alone_and_only_for_large_matrices_of_onednn() -> None:
    right = draw(k, n).float()
    assert torch.equal(arranged(right, m), right)
    assert arranged(right, m).mT.is_contiguous() == (libraries.library() == ONEDNN)
    for unchanged in (arranged(right, 2), arranged(right.double(), m)):
        assert unchanged.is_contiguous()


def test_batches_are_written_and_added_too() -> None:
    left, right, start = draw(2, m, k).float(), draw(2, k, n, seed=1).float(), draw(2, m, n, seed=2).float()
    out, total, space = start.clone(), start.clone(), start.clone()
    write_product(out, left, right)
    add_product(total, left, right)
    assert torch.equal(out, left @ right)
    assert torch.equal(product(left, right, space), space)
    torch.testing.assert_close(total, start + left @ right, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    left, right = draw(m, k).to(dtype), draw(k, n, seed=1).to(dtype)
    assert torch.equal(product(left, right), left @ right)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_few_rows(rows: int) -> None:
    left, right = draw(rows, k).float(), draw(k, n, seed=1).float()
    assert torch.equal(product(left, right), left @ right)


def test_a_torch_without_onednn_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = draw(m, k).float(), draw(k, n, seed=1).float()
    with_it = product(left, right)
    monkeypatch.setattr(libraries, "onednn", lambda: None)
    torch.testing.assert_close(product(left, right), with_it, rtol=0, atol=5e-5)
    assert torch.equal(product(left, right), left @ right)


def test_where_a_gradient_is_wanted_there_is_one() -> None:
    left, right = draw(m, k).float().requires_grad_(), draw(k, n, seed=1).float().requires_grad_()
    found = torch.autograd.grad(product(left, right).sum(), (left, right))
    for one, other in zip(found, torch.autograd.grad((left @ right).sum(), (left, right)), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert not product(left, right).requires_grad


def test_the_same_product_twice_is_the_same_to_the_last_bit() -> None:
    left, right = draw(m, k).float(), draw(k, n, seed=1).float()
    assert all(torch.equal(product(left, right), product(left.clone(), right.clone())) for _ in range(5))


def test_squared_magnitudes() -> None:
    x = draw(5, 6, dtype=torch.complex128)
    torch.testing.assert_close(squared_magnitudes(x), x.abs() ** 2)
    assert torch.equal(squared_magnitudes(x.real), x.real * x.real)
