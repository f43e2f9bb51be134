"""NorMuon against its definition in NumPy, with the exact polar factor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optimizers import OptimizerError
from optimizers.muon.normuon import NorMuon
from optimizers.registry import build

torch.manual_seed(0)
START = torch.randn(4, 6, dtype=torch.complex128)
GRADIENTS = torch.randn(5, 4, 6, dtype=torch.complex128)


def trained(start: Tensor, gradients: Tensor, layout: dict[str, object] | None = None, **options: object) -> Tensor:
    weight = Parameter(start.clone())
    optimizer = NorMuon([weight], **{"lr": 0.1, "orthogonalization": "svd", **options})
    optimizer.param_groups[0]["layouts"] = [layout]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("is_complex", [False, True])
def test_it_is_the_algorithm_of_the_paper(is_complex: bool) -> None:
    """The paper's matrices are outputs × inputs, and its neurons are rows."""
    start, gradients = (x if is_complex else x.real.clone() for x in (START, GRADIENTS))
    W, M, v = start.numpy().T, np.zeros((6, 4), dtype=start.numpy().dtype), np.zeros(6)
    for g in gradients.numpy():
        M = 0.9 * M + 0.1 * g.T
        U, _, Vh = np.linalg.svd(M, full_matrices=False)
        O = U @ Vh  # noqa: E741
        v = 0.8 * v + 0.2 * (abs(O) ** 2).mean(axis=1)
        hat = O / (np.sqrt(v) + 1e-8)[:, None]
        W = W - 0.1 * 0.3 * W - 0.2 * 0.1 * np.sqrt(24) / np.linalg.norm(hat) * hat
    found = trained(start, gradients, momentum=0.9, beta2=0.8, weight_decay=0.3)
    np.testing.assert_allclose(found.numpy().T, W, rtol=1e-9)


def test_orientation_and_number_of_matrices_are_those_declared() -> None:
    start, gradients = START.real.clone(), GRADIENTS.real.clone()
    turned = trained(start.T, gradients.mT, {"orientation": "output_input"})
    torch.testing.assert_close(turned.T, trained(start, gradients))
    halves = [trained(start[i : i + 2], gradients[:, i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(trained(start, gradients, {"matrices": 2}), torch.cat(halves))


def test_every_output_moves_alike_and_the_entries_have_the_stated_size() -> None:
    """After many steps of gradients that favour one output, which Muon's update does, too."""
    gradients = torch.randn(60, 8, 5, dtype=torch.float64) * torch.tensor([9.0, 1, 1, 1, 1])
    start = torch.zeros(8, 5, dtype=torch.float64)
    step = trained(start, gradients) - trained(start, gradients[:-1])
    assert step.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1)
    lengths = step.norm(dim=0)
    assert (lengths.max() / lengths.min()).item() < 1.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"beta2": 1.0}, "beta2 of normuon must be"),
        ({"orthogonalization": "newton"}, "newton"),
        ({"steps": 0}, "at least one step"),
    ],
)
def test_what_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        build("normuon", [Parameter(START.clone())], given, role="hidden")
    with pytest.raises(OptimizerError, match="a parameter of shape"):
        build("normuon", [Parameter(torch.zeros(3))], {}, role="hidden")
