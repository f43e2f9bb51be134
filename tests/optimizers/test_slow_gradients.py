"""The low-pass filter before an optimizer: what the inner one sees, and that nobody else sees it."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam

from optimizers import OPTIMIZERS, OptimizerError, build_optimizer, describe, register
from optimizers.check import CHECKS, Candidate
from optimizers.filters.slow_gradients import SlowGradients
from optimizers.registry import build

GRADIENTS = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(8)]


def sgd_seen(**hyperparameters: object) -> list[Tensor]:
    """The gradient that the inner optimizer sees at each step: SGD of rate 1 moves by it."""
    W = Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimizer = SlowGradients([W], inner="sgd", lr=1.0, **hyperparameters)
    seen = []
    for gradient in GRADIENTS:
        before, W.grad = W.detach().clone(), gradient.clone()
        optimizer.step()
        assert torch.equal(W.grad, gradient)
        seen.append(before - W.detach())
    return seen


def test_the_moving_exponential_average_by_hand() -> None:
    mean = GRADIENTS[0]
    for t, found in enumerate(sgd_seen(amplification=3.0, filter_decay=0.9)):
        mean = mean if t == 0 else 0.9 * mean + 0.1 * GRADIENTS[t]
        torch.testing.assert_close(found, GRADIENTS[t] + 3.0 * mean)


def test_the_moving_average_by_hand_waits_until_its_window_is_full() -> None:
    for t, found in enumerate(sgd_seen(filter="moving_average", window=3, amplification=5.0)):
        mean = torch.stack(GRADIENTS[t - 2 : t + 1]).mean(dim=0) if t >= 2 else torch.zeros(())
        torch.testing.assert_close(found, GRADIENTS[t] + 5.0 * mean)


@pytest.mark.parametrize("filter", ["ema", "moving_average"])
def test_slow_components_pass_amplified_and_fast_ones_as_they_were(filter: str) -> None:
    """A constant gradient grows by 1 + λ, one of alternating sign hardly."""
    W = Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SlowGradients([W], inner="sgd", lr=1.0, filter=filter, window=20, filter_decay=0.95, amplification=2.0)
    for t in range(200):
        before, W.grad = W.detach().clone(), torch.tensor([1.0, (-1.0) ** t], dtype=torch.float64)
        optimizer.step()
    constant, alternating = (before - W.detach()).abs().tolist()
    assert constant == pytest.approx(3.0, rel=1e-3)
    assert alternating == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("inner", ["adam", "muon"])
def test_without_amplification_it_is_the_inner_optimizer(inner: str) -> None:
    shared = {"lr": 0.05, "weight_decay": 0.1}
    weights = [Parameter(torch.ones(3, 4, dtype=torch.float64)) for _ in range(2)]
    given = {"inner": inner, "amplification": 0.0}
    plain = build(inner, weights[:1], {}, shared=shared, role="hidden")
    wrapped = build("slow_gradients", weights[1:], given, shared=shared, role="hidden")
    for gradient in GRADIENTS:
        for weight, optimizer in zip(weights, (plain, wrapped), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(*weights)


# -- an ordinary optimizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [name for name in CHECKS if name != "processes"])
@pytest.mark.parametrize(
    "hyperparameters", [{"inner": "muon"}, {"inner": "sgd", "filter": "moving_average", "window": 4}]
)
def test_contract_around_others(check: str, hyperparameters: dict[str, object]) -> None:
    CHECKS[check](Candidate("slow_gradients", hyperparameters))


def test_gradients_are_put_back_when_the_inner_optimizer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    W = Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimizer = SlowGradients([W], inner="sgd")
    W.grad = gradient = GRADIENTS[0].clone()
    monkeypatch.setattr(optimizer.inner, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert W.grad is gradient
    assert torch.equal(gradient, GRADIENTS[0])


def test_the_closure_is_evaluated_once_with_gradients() -> None:
    W = Parameter(torch.ones(2, 3))
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        loss = W.square().sum()
        loss.backward()
        return loss

    assert SlowGradients([W], inner="sgd", lr=0.1).step(closure).item() == 6.0
    assert calls == [True]


@pytest.mark.parametrize("filter", ["ema", "moving_average"])
def test_in_a_composite_the_filter_is_in_the_checkpoint(filter: str) -> None:
    """Resumed within the filter's memory; a load that dropped the filter, or aliased it, leads elsewhere."""

    def make(W: Parameter) -> object:
        section = {"name": "slow_gradients", "inner": "adam", "filter": filter, "window": 3, "lr": 0.1}
        return build_optimizer({"hidden": [("W", W)]}, {"hidden": section})

    def advance(optimizer: object, W: Parameter) -> Tensor:
        for gradient in GRADIENTS[4:]:
            W.grad = gradient.clone()
            optimizer.step()
        return W.detach().clone()

    W = Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimizer = make(W)
    advance(optimizer, W)
    saved, before = deepcopy(optimizer.state_dict()), W.detach().clone()
    kept = deepcopy(saved)
    expected = advance(optimizer, W)
    resumed = Parameter(before.clone())
    restored = make(resumed)
    held = restored.param_groups[0]
    restored.load_state_dict(saved)
    assert restored.param_groups[0] is held
    assert restored.param_groups[0] is restored.children["hidden"].inner.param_groups[0]
    assert torch.equal(advance(restored, resumed), expected)
    key = "mean" if filter == "ema" else "last"
    slow, slow_kept = (s["children"]["hidden"]["slow_gradients"]["filters"][0][key] for s in (saved, kept))
    assert torch.equal(slow, slow_kept)


def test_a_checkpoint_of_another_filter_is_refused() -> None:
    W = Parameter(torch.zeros(3, 4))
    state = SlowGradients([W], inner="adam").state_dict()
    words = r"is of slow_gradients\(adam, ema 0.98\) and this run has slow_gradients\(sgd, ema 0.98\)"
    with pytest.raises(OptimizerError, match=words):
        SlowGradients([W], inner="sgd").load_state_dict(state)
    with pytest.raises(OptimizerError, match="is of no slow_gradients"):
        SlowGradients([W], inner="adam").load_state_dict(Adam([W]).state_dict())


# -- from a config -------------------------------------------------------------------------------------------


def refused(**given: object) -> str:
    with pytest.raises(OptimizerError) as caught:
        build("slow_gradients", [Parameter(torch.zeros(2, 3))], given, role="hidden")
    return str(caught.value)


def test_hyperparameters_are_those_of_the_inner_optimizer_and_its_own() -> None:
    given = {"inner": "sgd", "amplification": "5", "momentum": "9e-1"}
    optimizer = build("slow_gradients", [Parameter(torch.zeros(2, 3))], given, shared={"lr": 0.5}, role="hidden")
    assert isinstance(optimizer.inner, SGD)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.5, 0.9)
    assert optimizer.amplification == 5.0
    message = refused(inner="sgd", momentun=0.9)
    assert message.startswith(
        "The optimizer 'slow_gradients' has no option 'momentun' (from optimizer.hidden.momentun); it takes inner="
    )
    assert "amplification=2.0" in message
    assert message.endswith("Did you mean 'momentum'?")
    assert "no option 'betas'" in refused(inner="sgd", betas=[0.9, 0.99])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"inner": "adamm"}, "Unknown optimizer 'adamm'"),
        ({"inner": "lbfgs"}, "optimizer.inner: lbfgs evaluates the loss several times a step"),
        ({"inner": "slow_gradients"}, "inner=slow_gradients does not fit: it has a hyperparameter 'inner', too"),
        ({"filter": "emma"}, "Unknown filter 'emma'; known are ema, moving_average. Did you mean 'ema'?"),
        ({"amplification": -1}, "amplification must be at least 0, not -1"),
        ({"filter_decay": 1.0}, "filter_decay must be at least 0 and below 1"),
        ({"window": 0}, "window must be a whole number from 1 on"),
        ({"inner": "adam", "lr": -1}, "optimizer.inner: adam cannot be built with lr=-1"),
    ],
)
def test_what_is_refused(given: dict[str, object], words: str) -> None:
    assert words in refused(**given)


def test_an_inner_optimizer_of_open_keywords_takes_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIMIZERS, "_entries", dict(OPTIMIZERS._entries))
    register("opened")(lambda params, **rest: SGD(params, **rest))
    optimizer = build(
        "slow_gradients", [Parameter(torch.zeros(2, 3))], {"inner": "opened", "momentum": 0.5}, role="hidden"
    )
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_the_split_reports_what_the_inner_optimizer_does_not_take() -> None:
    composite = build_optimizer(
        {"hidden": [("W", Parameter(torch.zeros(2, 3)))]},
        {"lr": 0.1, "weight_decay": 0.2, "hidden": {"name": "slow_gradients", "inner": "rprop"}},
    )
    assert "[takes no weight decay, the shared 0.2 is not applied]" in describe(composite)
