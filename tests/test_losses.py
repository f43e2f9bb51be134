"""The training losses by hand, and their ridge readouts."""

from __future__ import annotations

import math

import pytest
import torch

from li2_lightning.errors import InputError
from li2_lightning.losses import LOSSES, CrossEntropy, CrossEntropyInFloat64, Loss, StableMax, build_loss, one_hot
from li2_lightning.plugins import takes_stacks
from li2_lightning.theory.lazy import ridge_readout
from li2_lightning.verification.findings import draw

NAMES = ["mse", "projected_mse", "cross_entropy", "cross_entropy_float64", "stablemax"]
LABELS = torch.tensor([2, 0, 1, 2, 2, 0])


def test_mse_is_centred_over_the_classes_by_hand() -> None:
    """Outputs (3, 0, 0) become (2, −1, −1); the targets are (2/3, −1/3, −1/3) and (−1/3, 2/3, −1/3)."""
    loss = build_loss("mse")
    outputs = torch.tensor([[3.0, 0, 0], [3.0, 0, 0]], dtype=torch.float64)
    rows = loss.rows(outputs, torch.tensor([0, 1]))
    assert rows.tolist() == pytest.approx([(16 + 4 + 4) / 9, (49 + 25 + 4) / 9], rel=1e-12)
    assert loss(outputs, torch.tensor([0, 1])).item() == pytest.approx(rows.mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_losses_can_be_evaluated_in_inference_mode(name: str) -> None:
    """On labels from outside and on labels made inside, which have no version to tell whether they were written to."""
    loss, outputs = build_loss(name), draw(6, 3)
    expected = loss(outputs, LABELS)
    with torch.inference_mode():
        inside = LABELS.clone()
        for labels in (LABELS, inside, inside):
            assert loss(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-12)
        inside[0] = (LABELS[0] + 1) % 3
        assert one_hot(inside, 3, torch.float64).argmax(dim=1).tolist() == inside.tolist()


def test_one_hots_first_asked_for_in_inference_mode_can_be_differentiated_with_later() -> None:
    labels = LABELS.clone()
    with torch.inference_mode():
        one_hot(labels, 3, torch.float64)
    outputs = draw(6, 3).requires_grad_()
    (one_hot(labels, 3, torch.float64) * outputs.sin()).sum().backward()
    assert outputs.grad is not None


def test_mse_is_blind_to_an_offset_of_each_row() -> None:
    loss, outputs = build_loss("mse"), draw(6, 3)
    shifted = outputs + draw(6, 1, seed=1)
    torch.testing.assert_close(loss.rows(shifted, LABELS), loss.rows(outputs, LABELS), rtol=1e-12, atol=1e-12)
    assert loss.offset(outputs, LABELS) is None


def test_projected_mse_is_eq_1_times_two_over_n() -> None:
    """J = ½‖P₁⊥(Y − Ŷ)‖² with the n×n projection written out."""
    outputs, Y = draw(6, 3), torch.eye(3, dtype=torch.float64)[LABELS]
    P = torch.eye(6, dtype=torch.float64) - 1 / 6
    J = 0.5 * (P @ (Y - outputs)).square().sum()
    assert build_loss("projected_mse")(outputs, LABELS).item() == pytest.approx(2 / 6 * J.item(), rel=1e-12)


def test_projected_mse_is_blind_to_an_offset_of_each_class_and_measures_with_the_best_one() -> None:
    loss, outputs = build_loss("projected_mse"), draw(6, 3)
    shifted = outputs + draw(3, seed=1)
    assert loss(shifted, LABELS).item() == pytest.approx(loss(outputs, LABELS).item(), rel=1e-12)
    offset = loss.offset(shifted, LABELS)
    assert offset is not None
    residual = torch.eye(3, dtype=torch.float64)[LABELS] - shifted - offset
    torch.testing.assert_close(residual.sum(dim=0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_the_gradient_of_projected_mse_passes_through_the_offset(shift: float) -> None:
    outputs = (draw(6, 3) + shift).requires_grad_()
    (gradient,) = torch.autograd.grad(build_loss("projected_mse")(outputs, LABELS), outputs)
    P = torch.eye(6, dtype=torch.float64) - 1 / 6
    expected = -2 / 6 * P @ (torch.eye(3, dtype=torch.float64)[LABELS] - outputs.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_cross_entropy_by_hand() -> None:
    outputs = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, math.log(6)]], dtype=torch.float64)
    rows = build_loss("cross_entropy").rows(outputs, torch.tensor([0, 1]))
    assert rows.tolist() == pytest.approx([math.log(4 / 2), math.log(8)], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_the_mean_of_its_rows_however_they_are_divided(name: str) -> None:
    """With the offset of all of them, where there is one."""
    loss, outputs = build_loss(name), draw(6, 3)
    offset = loss.offset(outputs, LABELS)
    seen = outputs if offset is None else outputs + offset
    parts = [loss.rows(seen[part], LABELS[part]).sum() for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert loss(outputs, LABELS).item() == pytest.approx((sum(parts) / 6).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["mse", "projected_mse"])
@pytest.mark.parametrize("K", [4, 9])
def test_the_ridge_readout_minimizes_the_loss_with_weight_decay(name: str, K: int) -> None:
    """η = nλ/2: L + (λ/2)‖V‖² has no slope there."""
    F, decay, loss = draw(6, K), 0.1, build_loss(name)
    problem = loss.ridge_problem(F, one_hot(LABELS, 3, torch.float64))
    V = ridge_readout(*problem, ridge=6 * decay / 2).requires_grad_()
    (slope,) = torch.autograd.grad(loss(F @ V, LABELS) + decay / 2 * V.square().sum(), V)
    assert slope.abs().max() < 1e-12
    assert V.abs().max() > 1e-2


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropyInFloat64(), StableMax()], ids=lambda loss: type(loss).__name__
)
def test_a_loss_that_is_not_squared_has_no_ridge_readout(loss: Loss) -> None:
    with pytest.raises(InputError, match=r"has no ridge readout; use network\.readout=gradient"):
        loss.ridge_problem(draw(6, 4), draw(6, 3))


def test_stablemax_by_hand() -> None:
    """s(2) = 3, s(0) = 1, s(−1) = ½."""
    outputs = torch.tensor([[2.0, 0.0, -1.0], [2.0, 0.0, -1.0]], dtype=torch.float64)
    rows = build_loss("stablemax").rows(outputs, torch.tensor([0, 2]))
    assert rows.tolist() == pytest.approx([math.log(4.5 / 3), math.log(4.5 / 0.5)], rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_the_gradient_of_stablemax_is_that_of_its_definition(scale: float) -> None:
    """At zero outputs (V = 0 at first), where the two branches of s meet with slope 1, and far from them."""
    outputs = (scale * draw(6, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(build_loss("stablemax")(outputs, LABELS), outputs)
    with torch.no_grad():
        s = torch.where(outputs >= 0, outputs + 1, 1 / (1 - outputs))
        slope = torch.where(outputs >= 0, 1.0, s.square())
        expected = (slope / s.sum(dim=1, keepdim=True) - one_hot(LABELS, 3, torch.float64) * slope / s) / 6
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-15)


def test_stablemax_still_drives_rows_that_have_collapsed_under_cross_entropy() -> None:
    outputs, labels = torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([0])
    assert build_loss("cross_entropy")(outputs, labels) == 0
    assert build_loss("stablemax")(outputs, labels) > 1e-3


def test_cross_entropy_in_float64_is_that_of_float64_with_gradients_in_the_precision_of_the_outputs() -> None:
    """25 above two others the loss is ln(1 + 2e⁻²⁵), which float32 rounds to 0. Near 0 the two losses agree."""
    outputs, labels = torch.tensor([[25.0, 0.0, 0.0]], requires_grad=True), torch.tensor([0])
    (collapsed,) = torch.autograd.grad(build_loss("cross_entropy")(outputs, labels), outputs)
    loss = build_loss("cross_entropy_float64")(outputs, labels)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert collapsed[0, 0] == 0
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-25)), rel=1e-4)
    assert gradient.dtype == torch.float32
    assert gradient[0].tolist() == pytest.approx([-2 * math.exp(-25), math.exp(-25), math.exp(-25)], rel=1e-4)
    near = draw(6, 3)
    assert build_loss("cross_entropy_float64")(near, LABELS) == build_loss("cross_entropy")(near, LABELS)


@pytest.mark.parametrize("name", [name for name in NAMES if takes_stacks(LOSSES.find(name))])
def test_the_rows_of_a_stack_are_those_of_each_run(name: str) -> None:
    loss, outputs, labels = build_loss(name), draw(2, 6, 3), torch.stack([LABELS, LABELS.flip(0)])
    rows = torch.stack([loss.fitted_rows(*run) for run in zip(outputs, labels, strict=True)])
    torch.testing.assert_close(loss.fitted_rows(outputs, labels), rows, rtol=1e-12, atol=0)


def test_one_hot_puts_a_one_at_each_label() -> None:
    Y = one_hot(LABELS, 4, torch.float32)
    assert Y.dtype == torch.float32
    assert [(i, c) for i, c in Y.nonzero().tolist()] == list(enumerate(LABELS.tolist()))


def test_an_unknown_loss_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"Unknown loss 'mes'; known are cross_entropy, .*, stablemax\. Did"):
        build_loss("mes")
    assert LOSSES.names() == sorted(NAMES)
    assert all(isinstance(build_loss(name), Loss) for name in NAMES)
