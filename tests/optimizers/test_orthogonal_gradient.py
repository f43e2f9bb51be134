"""Gradients without their component along the weight."""

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD

from optimizers import OptimizerError
from optimizers.check import CHECKS, Broken, Candidate
from optimizers.filters.orthogonal_gradient import OrthogonalGradient
from optimizers.filters.slow_gradients import SlowGradients
from optimizers.registry import build

torch.manual_seed(0)
W0, G = torch.randn(2, 4, 6, dtype=torch.float64)
TARGET = torch.randn(4, 6, dtype=torch.float64)
# A solution of a certain length is what the method leaves undetermined.
NOT_HELD = ("convex_quadratic", "matrix_problem", "complex_weights", "vectors")


def seen(weight: Tensor, gradient: Tensor) -> Tensor:
    """What the inner optimizer got, by a step of gradient descent of length 1."""
    W = Parameter(weight.clone())
    optimizer = OrthogonalGradient([W], inner="sgd", lr=1.0)
    W.grad = gradient.clone()
    optimizer.step()
    return weight - W.detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_by_hand(dtype: torch.dtype) -> None:
    W, g = (torch.randn(4, 6, dtype=dtype) for _ in range(2))
    found = seen(W, g)
    torch.testing.assert_close(found, g - W * (W.conj() * g).sum().real / W.abs().square().sum())
    assert (W.conj() * found).sum().real.item() == pytest.approx(0, abs=1e-12)
    # Among all tensors orthogonal to W it is the nearest: what was taken away lies along W.
    away = g - found
    assert (away / W).real.std().item() == pytest.approx(0, abs=1e-12)


def test_what_is_orthogonal_passes_and_what_is_radial_does_not() -> None:
    tangent = seen(W0, G)
    torch.testing.assert_close(seen(W0, tangent), tangent)
    torch.testing.assert_close(seen(W0, 3 * W0), torch.zeros_like(W0))
    assert torch.equal(seen(torch.zeros_like(W0), G), G)


@pytest.mark.skipif(importlib.util.find_spec("pytorch_optimizer") is None, reason="the optional extra is not installed")
def test_it_is_the_published_method_but_for_the_length() -> None:
    """The authors' code scales up to the length of g, as does the package's version of it."""
    from pytorch_optimizer import OrthoGrad

    W = Parameter(W0.clone())
    W.grad = G.clone()
    OrthoGrad(SGD([W], lr=1.0)).step()
    ours = seen(W0, G)
    torch.testing.assert_close(W0 - W.detach(), ours * G.norm() / ours.norm())


def angle(W: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(W.flatten(), TARGET.flatten(), dim=0)


@pytest.mark.parametrize(("inner", "lr"), [("sgd", 2.0), ("adam", 0.02)])
def test_it_finds_a_direction(inner: str, lr: float) -> None:
    """1 − cos(W, T) depends on no length, so its gradient passes as it is, and it is minimized."""
    W = Parameter(W0.clone())
    optimizer = build("orthogonal_gradient", [W], {"inner": inner, "lr": lr}, role="hidden")
    for _ in range(200):
        optimizer.zero_grad()
        loss = angle(W)
        loss.backward()
        gradient = W.grad.clone()
        torch.testing.assert_close(optimizer.filtered(W.detach(), gradient), gradient)
        optimizer.step()
    assert loss.item() < 0.01
    assert angle(W0).item() > 0.5


def test_gradient_descent_keeps_to_the_sphere_and_without_the_filter_does_not() -> None:
    """Small steps along tangents: the length stays to second order in lr, whatever the loss asks for."""
    lengths = {}
    for name in ("sgd", "orthogonal_gradient"):
        W = Parameter(W0.clone())
        optimizer = build(name, [W], {"lr": 1e-3} | ({"inner": "sgd"} if name != "sgd" else {}), role="hidden")
        for _ in range(1000):
            optimizer.zero_grad()
            (W - 5 * TARGET).square().sum().backward()
            optimizer.step()
        lengths[name] = (W.norm() / W0.norm()).item()
    assert lengths["orthogonal_gradient"] == pytest.approx(1, abs=0.1)
    assert lengths["sgd"] > 2


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ("processes", *NOT_HELD)])
def test_contract_of_a_chain(check: str) -> None:
    CHECKS[check](Candidate("orthogonal_gradient", {"inner": ["slow_gradients", "adamw"]}))


@pytest.mark.parametrize("check", NOT_HELD)
def test_what_of_the_contract_does_not_hold(check: str) -> None:
    with pytest.raises(Broken):
        CHECKS[check](Candidate("orthogonal_gradient", {"inner": "sgd"}))


def test_filters_chain_with_everybodys_hyperparameters() -> None:
    """The outer filter comes first: what slow_gradients averages is orthogonal already."""
    W = Parameter(W0.clone())
    given = {"inner": ["slow_gradients", "sgd"], "amplification": 3.0, "momentum": 0.5}
    optimizer = build("orthogonal_gradient", [W], given, shared={"lr": 1.0}, role="hidden")
    assert isinstance(optimizer.inner, SlowGradients)
    assert isinstance(optimizer.inner.inner, SGD)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (1.0, 0.5)
    W.grad = G.clone()
    optimizer.step()
    torch.testing.assert_close(W0 - W.detach(), 4 * seen(W0, G))


def test_a_chain_survives_a_checkpoint_of_the_same_chain_only() -> None:
    def make(W: Parameter, *inner: str) -> OrthogonalGradient:
        return OrthogonalGradient([W], inner=list(inner), lr=0.1)

    W = Parameter(W0.clone())
    optimizer = make(W, "slow_gradients", "sgd")
    W.grad = G.clone()
    optimizer.step()
    resumed = Parameter(W.detach().clone())
    restored = make(resumed, "slow_gradients", "sgd")
    restored.load_state_dict(optimizer.state_dict())
    for weight, each in ((W, optimizer), (resumed, restored)):
        weight.grad = G.T.reshape(4, 6).clone()
        each.step()
    assert torch.equal(W, resumed)
    with pytest.raises(OptimizerError, match="is of slow_gradients"):
        make(resumed, "slow_gradients", "adam").load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"inner": "adamm"}, "Unknown optimizer 'adamm'"),
        (
            {"inner": "slow_gradients"},
            "has a hyperparameter 'inner', too; to chain filters, say inner=[slow_gradients,",
        ),
        ({"inner": ["adam", "sgd"]}, "adam wraps no other optimizer; in inner only the last name is one"),
        ({"inner": []}, "inner names no optimizer"),
        ({"inner": ["slow_gradients", "sgd"], "momentun": 0.9}, "Did you mean 'momentum'?"),
        ({"inner": "adam", "amplification": 2.0}, "'orthogonal_gradient' has no option 'amplification'"),
    ],
)
def test_what_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        build("orthogonal_gradient", [Parameter(W0.clone())], given, role="hidden")
    assert words in str(caught.value)


def test_a_single_number_is_refused() -> None:
    with pytest.raises(OptimizerError, match="a parameter that is a single number"):
        build("orthogonal_gradient", [Parameter(torch.ones(()))], {}, role="hidden")
