"""Theorem 4: features on random samples, and the gradient that carries the experiment."""

from __future__ import annotations

import pytest
import torch

from li2_lightning import groups
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.theory.energy import energy_gradient, energy_of_weights, group_energy_gradient
from li2_lightning.theory.sampling import retention, sampled_energy_gradient


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_energy_of_samples_is_that_of_their_one_hots(name: str) -> None:
    group, generator = groups.symmetric(3), torch.Generator().manual_seed(0)
    left, right = torch.randint(6, (2, 17), generator=generator)
    labels = torch.tensor(group.table)[left, right]
    W = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    eye = torch.eye(6, dtype=torch.float64)
    X, Y = torch.cat([eye[left], eye[right]], dim=1), eye[labels]
    E, gradient = sampled_energy_gradient(W, left, right, labels, ACTIVATIONS[name])
    torch.testing.assert_close(E, energy_of_weights(W, X, Y - Y.mean(dim=0), ACTIVATIONS[name]))
    torch.testing.assert_close(gradient, energy_gradient(W, X, Y - Y.mean(dim=0), ACTIVATIONS[name]))


def test_all_samples_make_the_energy_of_the_group() -> None:
    group = groups.quaternion()
    left, right = (side.flatten() for side in torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    W = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(group.table)[left, right]
    found = sampled_energy_gradient(W, left, right, labels, ACTIVATIONS["square"])
    for ours, whole in zip(found, group_energy_gradient(W, group), strict=True):
        torch.testing.assert_close(ours, whole)


@pytest.mark.parametrize("group", [groups.cyclic(23), groups.symmetric(4), groups.quaternion()], ids=lambda g: g.name)
def test_on_all_pairs_every_feature_stays(group: groups.FiniteGroup) -> None:
    shares = retention(group, 1.0, torch.Generator().manual_seed(0))
    assert (shares > 1 - 1e-9).all()


def test_few_samples_lose_the_features_and_many_keep_them() -> None:
    """Z23, whose boundary is at .562: none of 33 at .36, all at .76."""
    for fraction, kept in ((0.36, 0), (0.76, 33)):
        shares = torch.cat([retention(groups.cyclic(23), fraction, torch.Generator().manual_seed(s)) for s in range(3)])
        assert (shares > 0.5).sum() == kept


@pytest.mark.slow
@pytest.mark.parametrize(("order", "boundary"), [(23, 0.562), (47, 0.507)])
def test_half_of_the_features_are_kept_at_the_measured_boundary(order: int, boundary: float) -> None:
    """Within .2 of a half over 20 and 10 samples; those kept have lost about a tenth of their share."""
    shares = torch.cat(
        [retention(groups.cyclic(order), boundary, torch.Generator().manual_seed(s)) for s in range(460 // order)]
    )
    kept = shares > 0.5
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.2)
    assert 0.75 < shares[kept].mean() < 0.95
