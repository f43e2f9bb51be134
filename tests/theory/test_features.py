"""Norms by isotypic block, against projectors as matrices; and Theorem 7 on features that are built by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from li2_lightning import groups
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import irreducible_subspaces, isotypic_blocks
from li2_lightning.networks.activations import find_activation
from li2_lightning.theory.energy import ascend, block_shares, energy_gradient, energy_of_weights, maximizer
from li2_lightning.theory.features import (
    block_norms,
    explained,
    missing_ratio,
    output_block_norms,
    split_outputs,
    target_block_norms,
)
from li2_lightning.theory.interaction import new_node_gradient, top_down_energy
from li2_lightning.theory.lazy import center, ridge_readout

GROUPS = {"Z7": groups.cyclic(7), "S3": groups.symmetric(3), "Q8": groups.quaternion(8), "Z2×Z4": groups.product("2x4")}
SQUARE = find_activation("square")


def projectors(group: FiniteGroup) -> list[Tensor]:
    return [torch.tensor(block.projector) for block in isotypic_blocks(group)[1:]]


def all_rows(group: FiniteGroup) -> tuple[Tensor, Tensor]:
    """X (M²×2M) and Y (M²×M)."""
    M = group.order
    one, two = torch.meshgrid(torch.arange(M), torch.arange(M), indexing="ij")
    X = torch.cat([functional.one_hot(part.flatten(), M) for part in (one, two)], dim=1).double()
    return X, functional.one_hot(torch.tensor(group.table).flatten(), M).double()


def nodes_in(group: FiniteGroup, block: int, count: int = 60) -> Tensor:
    """Maxima of the energy in one block (numbered as in ``isotypic_blocks(group)[1:]``), with random coefficients."""
    draw = torch.Generator().manual_seed(block)
    found = []
    for subspace in irreducible_subspaces(group)[1 + block]:
        x, y = torch.randn(2, subspace.shape[1], count, generator=draw, dtype=torch.float64)
        found.append(maximizer(torch.tensor(subspace), x, y, group))
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_norms_by_block_are_those_of_projected_matrices(name: str, dtype: torch.dtype) -> None:
    group = GROUPS[name]
    draw = torch.Generator().manual_seed(0)
    n, K, M = 23, 5, group.order
    F, V = (torch.randn(*shape, generator=draw, dtype=dtype) for shape in ((n, K), (K, M)))
    labels = torch.randint(M, (n,), generator=draw)
    Y = functional.one_hot(labels, M).double()
    R = center(Y - (F @ V).real)
    F = center(F)
    norms = block_norms(R.mT @ R, V, F.mH @ R.to(dtype), group)
    target = target_block_norms(Y.sum(dim=0), group)
    for k, P in enumerate(projectors(group)):
        part = R @ P
        assert norms.residual[k].item() == pytest.approx(part.square().sum().item(), rel=1e-9)
        assert norms.gradient[k].item() == pytest.approx((part.to(dtype) @ V.mH).abs().square().sum().item(), rel=1e-9)
        coupled = part.to(dtype) @ (R.mT.to(dtype) @ F)
        assert norms.coupled[k].item() == pytest.approx(coupled.abs().square().sum().item(), rel=1e-9)
        assert target[k].item() == pytest.approx((center(Y) @ P).square().sum().item(), rel=1e-9)
    assert torch.equal(explained(norms.residual, target), 1 - norms.residual / target)


def test_a_leading_axis_is_a_run_of_its_own() -> None:
    group = GROUPS["S3"]
    draw = torch.Generator().manual_seed(1)
    R, V, Q = (torch.randn(3, *shape, generator=draw, dtype=torch.float64) for shape in ((9, 6), (4, 6), (4, 6)))
    together = block_norms(R.mT @ R, V, Q, group)
    counts = torch.randint(1, 5, (3, 6), generator=draw).double()
    kept = torch.tensor([[True, False], [False, True], [False, False]])
    for run in range(3):
        alone = block_norms(R[run].mT @ R[run], V[run], Q[run], group)
        for name in ("residual", "gradient", "coupled"):
            torch.testing.assert_close(getattr(together, name)[run], getattr(alone, name))
        for stacked, single in (
            (target_block_norms(counts, group), target_block_norms(counts[run], group)),
            (split_outputs(R, kept, group)[0], split_outputs(R[run], kept[run], group)[0]),
            (output_block_norms(R, group), output_block_norms(R[run], group)),
        ):
            torch.testing.assert_close(stacked[run], single)


@pytest.mark.parametrize("name", GROUPS)
def test_outputs_are_split_into_the_kept_blocks_and_the_others(name: str) -> None:
    group = GROUPS[name]
    outputs = torch.randn(11, group.order, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    every = projectors(group)
    kept = torch.arange(len(every)) % 2 == 0
    P = sum(every[k] for k in range(len(every)) if kept[k])
    restricted, excluded = split_outputs(outputs, kept, group)
    constant = outputs.mean(dim=1, keepdim=True)
    torch.testing.assert_close(restricted, outputs @ P + constant, rtol=0, atol=1e-12)
    torch.testing.assert_close(excluded, outputs - outputs @ P, rtol=0, atol=1e-12)
    for k, part in enumerate(output_block_norms(outputs, group)):
        assert part.item() == pytest.approx((outputs @ every[k]).square().sum().item(), rel=1e-9)


def test_the_ratio_of_what_is_missing_is_its_share_over_that_of_the_target() -> None:
    norms, target = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 1.0])
    assert missing_ratio(norms, target, torch.tensor([True, False, True])) == pytest.approx((3 / 8) / (1 / 4))
    assert missing_ratio(norms, target, torch.tensor([False, False, False])) == 1
    assert missing_ratio(norms, target, torch.tensor([True, True, True])).isnan()


@pytest.mark.parametrize(("name", "spanned"), [("Z7", (0, 2)), ("S3", (0,)), ("Q8", (1, 3)), ("Z2×Z4", (0, 4))])
def test_what_is_missing_is_all_that_the_residual_and_a_new_node_see(name: str, spanned: tuple[int, ...]) -> None:
    """Theorem 7. The nodes in place have no part in the missing blocks, so their own gradient stays in theirs."""
    group = GROUPS[name]
    X, Y = all_rows(group)
    W = torch.cat([nodes_in(group, k) for k in spanned], dim=1)
    F = center(SQUARE(X @ W))
    V = ridge_readout(F, center(Y), 1e-7)
    R = center(Y - F @ V)
    covered = torch.tensor([k in spanned for k in range(len(isotypic_blocks(group)) - 1)])
    norms = block_norms(R.mT @ R, V, F.mT @ R, group)
    share = explained(norms.residual, target_block_norms(Y.sum(dim=0), group))
    torch.testing.assert_close(share, covered.double(), rtol=0, atol=1e-6)
    assert norms.gradient[~covered].sum() < 1e-12 * norms.residual.sum()

    def energy_and_gradient(w: Tensor) -> tuple[Tensor, Tensor]:
        return top_down_energy(w, X, R, SQUARE), energy_gradient(w, X, R, SQUARE)

    start = torch.randn(2 * group.order, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    end = ascend(start, energy_and_gradient, max_steps=200)
    assert not covered[block_shares(end.weights, group).argmax(dim=0)].any()
    # The control: without the nodes in place some ascents end in the blocks that are spanned here.
    alone = ascend(
        start, lambda w: (energy_of_weights(w, X, center(Y), SQUARE), energy_gradient(w, X, center(Y), SQUARE))
    )
    assert covered[block_shares(alone.weights, group).argmax(dim=0)].any()
    # The exact gradient of a small new node at the ridge readout of all nodes has only missing blocks in class space.
    g = new_node_gradient(1e-6 * SQUARE(X @ start[:, :5]), F, Y, 1e-7)
    by_class = (center(Y).mT @ g).mT
    assert output_block_norms(by_class, group)[covered].sum() < 1e-8 * by_class.square().sum()
