"""Stage III: B, the repulsion of Theorem 6, and the top-down modulation of Theorem 7."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from li2_lightning import groups
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.theory.energy import ascend, block_shares, predicted_maxima
from li2_lightning.theory.interaction import (
    new_node_gradient,
    node_interaction,
    repulsion_entry,
    top_down_energy,
)
from li2_lightning.theory.lazy import backpropagated_gradient, center, ridge_readout
from li2_lightning.theory.reconstruction import both_signs, pair_features, pair_targets
from li2_lightning.verification.findings import draw

DTYPES = [torch.float64, torch.complex128]
SIZES = [(12, 30), (30, 12), (12, 12)]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def dense(features: Tensor, ridge: float) -> Tensor:
    F = center(features)
    return torch.linalg.inv(F.mH @ F + ridge * torch.eye(F.shape[-1], dtype=F.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_b_on_either_side(n: int, K: int, ridge: float, dtype: torch.dtype) -> None:
    F = draw(n, K, dtype=dtype)
    close(node_interaction(F, ridge), dense(F, ridge))


def test_b_takes_batches_and_solves_single_precision_in_double() -> None:
    F = draw(3, 12, 30).float()
    B = node_interaction(F, 0.1)
    assert B.dtype == torch.float64
    for i in range(3):
        close(B[i], dense(F[i].double(), 0.1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), SIZES)
def test_theorem_6(n: int, K: int, dtype: torch.dtype) -> None:
    """−c/(ab − |c|²), from a projection that leaves j and l out, is the entry of B."""
    F, ridge = draw(n, K, dtype=dtype), 0.3
    B = node_interaction(F, ridge)
    for j, l in ((0, 1), (5, 2), (11, 4)):  # noqa: E741
        close(repulsion_entry(F, ridge, j, l), B[j, l])


def test_two_nodes_alike_repel_and_two_opposed_attract() -> None:
    F = draw(30, 12)
    F[:, 1] = F[:, 0] + 0.1 * F[:, 1]
    assert repulsion_entry(F, 0.1, 0, 1) < 0
    F[:, 1] *= -1
    assert repulsion_entry(F, 0.1, 0, 1) > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K"), [(12, 20), (20, 6)])
def test_theorem_7_the_gradient_of_a_new_node(n: int, K: int, dtype: torch.dtype) -> None:
    """−∂J*/∂f by autograd through the ridge solution, and the last column of G_F at the readout of all nodes."""
    F, Y, ridge = draw(n, K, dtype=dtype), draw(n, 4, seed=1), 0.4
    f = draw(n, 1, dtype=dtype, seed=2).requires_grad_()
    everything = center(torch.cat([F, f], dim=1))
    targets = center(Y).to(dtype)
    kernel = everything @ everything.mH + ridge * torch.eye(n, dtype=dtype)
    J = ridge / 2 * torch.linalg.vecdot(targets, torch.linalg.solve(kernel, targets), dim=0).real.sum()
    (gradient,) = torch.autograd.grad(J, f)
    g = new_node_gradient(f.detach(), F, Y, ridge)
    close(g, -gradient, 1e-9)
    V = ridge_readout(everything.detach(), targets, ridge)
    close(g, backpropagated_gradient(center(targets - everything.detach() @ V), V)[:, -1:])


def test_only_a_small_new_node_follows_the_energy_of_what_is_missing() -> None:
    F, Y, f, ridge = draw(30, 6), draw(30, 4, seed=1), draw(30, 1, seed=2), 0.4
    R = center(Y - center(F) @ ridge_readout(center(F), center(Y), ridge))

    def error(f: Tensor) -> float:
        top_down = R @ (R.mT @ center(f)) / ridge
        return ((new_node_gradient(f, F, Y, ridge) - top_down).norm() / top_down.norm()).item()

    assert error(1e-4 * f) < 1e-5
    assert error(f) > 0.5


def test_several_nodes_join_one_by_one() -> None:
    F, Y, f = draw(12, 6), draw(12, 4, seed=1), draw(12, 3, seed=2)
    together = new_node_gradient(f, F, Y, 0.4)
    for i in range(3):
        close(together[:, i : i + 1], new_node_gradient(f[:, i : i + 1], F, Y, 0.4))


@pytest.mark.parametrize("name", ["Z7", "S4"])
def test_theorem_7_once_some_irreps_are_spanned_maxima_are_left_for_the_others_alone(name: str) -> None:
    """Features of half of the irreps, η = 0: R is Ỹ on the others, and ascent of E_S ends there, with their E*."""
    group = {"Z7": groups.cyclic(7), "S4": groups.symmetric(4)}[name]
    blocks = isotypic_blocks(group)[1:]
    spanned = set(range(len(blocks) // 2 + 1))
    units = []
    for number in spanned:  # as many products u(a)v(b) of the block as there are
        projector, many = torch.tensor(blocks[number].projector), blocks[number].rank ** 2
        u, v = projector @ draw(group.order, many), projector @ draw(group.order, many, seed=1)
        units.append(both_signs(u, v))
    F, Y = center(pair_features(torch.cat(units, dim=1))), center(pair_targets(group))
    R = Y - F @ torch.linalg.lstsq(F, Y, driver="gelsd").solution
    eye = torch.eye(group.order, dtype=torch.float64)
    X = torch.cat([eye.repeat_interleave(group.order, 0), eye.repeat(group.order, 1)], dim=1)
    square = ACTIVATIONS["square"]

    def climb(w: Tensor) -> tuple[Tensor, Tensor]:
        w = w.detach().requires_grad_()
        E = top_down_energy(w, X, R, square)
        return E.detach(), torch.autograd.grad(E.sum(), w)[0]

    ascent = ascend(draw(2 * group.order, 40, seed=3), climb, tolerance=1e-9)
    purity, block = block_shares(ascent.weights, group).max(dim=0)
    assert (purity > 1 - 1e-9).all()
    assert set(block.tolist()) == set(range(len(blocks))) - spanned
    assert (ascent.energies / predicted_maxima(group)[block] - 1).abs().max() < 1e-9
