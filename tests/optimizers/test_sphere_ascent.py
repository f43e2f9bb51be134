"""The theory's ascent recipe as an optimizer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from li2_lightning import groups
from li2_lightning.theory.energy import ascend, classify_limits, group_energy, group_energy_gradient
from optimizers import OptimizerError, build_optimizer
from optimizers.sphere_ascent import SphereAscent

GROUP = groups.cyclic(7)


def start() -> torch.Tensor:
    return torch.randn(14, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_it_takes_the_steps_of_ascend_whatever_the_scale_of_the_loss(scale: float) -> None:
    weights = Parameter(3 * start())
    optimizer = SphereAscent([weights])
    for _ in range(20):
        optimizer.zero_grad()
        (-scale * group_energy(weights, GROUP).sum()).backward()
        optimizer.step()
    recipe = ascend(start(), lambda w: group_energy_gradient(w, GROUP), rate=0.25, tolerance=0, max_steps=20)
    torch.testing.assert_close(weights.detach(), recipe.weights, rtol=1e-9, atol=1e-9)


def test_every_random_start_ends_in_a_maximum_of_theorem_2() -> None:
    weights = Parameter(start())
    optimizer = SphereAscent([weights])
    for _ in range(150):
        optimizer.zero_grad()
        (-group_energy(weights, GROUP).sum()).backward()
        optimizer.step()
    assert classify_limits(weights.detach(), GROUP).maximizers().all()


def test_a_column_without_a_direction_outwards_stays() -> None:
    """A slope that points inwards, one along the sphere, none at all, and a column of zeros."""
    weights = Parameter(torch.tensor([[2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    optimizer = SphereAscent([weights])
    weights.grad = torch.tensor([[1.0, 0.0, 0.0, 1.0], [5.0, -1.0, 0.0, 1.0]])
    before = weights.grad.clone()
    optimizer.step()
    assert weights.tolist() == [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert torch.equal(weights.grad, before)


def test_the_first_step_of_a_plain_matrix() -> None:
    weights = Parameter(torch.tensor([[2.0], [0.0]]))
    weights.grad = torch.tensor([[-4.0], [-4.0]])
    SphereAscent([weights], lr=1.0).step()
    torch.testing.assert_close(weights.detach(), torch.tensor([[2.0], [1.0]]) / 5**0.5)


@pytest.mark.parametrize(
    ("weights", "lr", "message"),
    [
        (torch.zeros(3), 0.25, "real matrices"),
        (torch.zeros(3, 2, dtype=torch.complex64), 0.25, "real matrices"),
        (torch.zeros(3, 2), -1.0, "at least 0"),
    ],
)
def test_what_it_refuses(weights: torch.Tensor, lr: float, message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        SphereAscent([Parameter(weights)], lr=lr)


def test_a_config_names_it_by_its_path_and_decay_does_not_reach_it() -> None:
    roles = {"hidden": [("W", Parameter(start()))], "output": [], "embedding": []}
    section = {
        "lr": 0.25,
        "weight_decay": 0.0,
        "hidden": {"name": "optimizers.sphere_ascent:SphereAscent"},
        "output": {"name": "adam"},
        "embedding": {"name": "adam"},
    }
    optimizer = build_optimizer(roles, section)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]
