"""What every optimizer must do, whoever wrote it: one suite over all that is registered and torch's usual."""

import io
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import optimizers
from optimizers.composite import CompositeOptimizer
from optimizers.registry import build, registered

NAMES = sorted({"adam", "adamw", "sgd", *registered()})
# Weights at (0, 0), (1, 2), (2, 3) and the norm, from `golden`; a plug-in in the folder adds its line.
GOLDEN = {
    "adam": [-0.5327724504033717, -1.0296189728264966, -0.062199126589002236, 4.085884356561768],
    "adamw": [-0.6040012399134473, -0.9976445049867962, -0.05826447498623199, 4.089045031259419],
    "muon": [-0.7977361627712137, -0.6352349927837392, -0.21078829455558168, 3.6033175699687354],
    "sgd": [-0.7427808719760528, -0.8862612951387395, -0.16374846774809007, 4.013019198081153],
}


def problem(dtype: torch.dtype = torch.float64) -> tuple[Parameter, Tensor, Tensor]:
    """A least-squares problem in a 6×9 matrix that some matrix solves exactly."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(32, 6, generator=generator, dtype=dtype)
    Y = X @ torch.randn(6, 9, generator=generator, dtype=dtype)
    return Parameter(torch.zeros(6, 9, dtype=dtype)), X, Y


def loss_of(W: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    return 0.5 * (X @ W - Y).square().sum() / len(X)


def make(name: str, *weights: Parameter, lr: float = 0.02, weight_decay: float = 0.0) -> CompositeOptimizer:
    named = [(f"weight{i}", weight) for i, weight in enumerate(weights)]
    return optimizers.build_optimizer(
        {"hidden": named}, {"lr": lr, "weight_decay": weight_decay, "hidden": {"name": name}}
    )


def train(optimizer: torch.optim.Optimizer, W: Parameter, X: Tensor, Y: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(W, X, Y).backward()
        optimizer.step()
    return W.detach().clone()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decreases_a_convex_problem(name: str, dtype: torch.dtype) -> None:
    W, X, Y = problem(dtype)
    before = loss_of(W, X, Y).item()
    train(make(name, W), W, X, Y, 250)
    assert loss_of(W, X, Y).item() < 0.1 * before


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_checkpoint_bit_for_bit(name: str) -> None:
    W, X, Y = problem()
    optimizer = make(name, W, weight_decay=0.01)
    train(optimizer, W, X, Y, 5)
    file = io.BytesIO()
    torch.save({"weight": W.detach(), "optimizer": optimizer.state_dict()}, file)
    uninterrupted = train(optimizer, W, X, Y, 5)

    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    resumed = Parameter(checkpoint["weight"])
    restored = make(name, resumed, weight_decay=0.01)
    restored.load_state_dict(checkpoint["optimizer"])
    assert torch.equal(train(restored, resumed, X, Y, 5), uninterrupted)


@pytest.mark.parametrize("name", NAMES)
def test_leaves_gradients_alone(name: str) -> None:
    W, X, Y = problem(torch.float32)
    optimizer = make(name, W, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(W, X, Y).backward()
        gradient, bits = W.grad, W.grad.clone()
        optimizer.step()
        assert W.grad is gradient
        assert torch.equal(gradient, bits)
    assert W.dtype == torch.float32
    assert W.requires_grad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", optimizers.ROLES)
def test_trains_its_role_as_it_would_alone(name: str, role: str) -> None:
    W, X, Y = problem()
    alone = Parameter(W.detach().clone())
    others = [r for r in optimizers.ROLES if r != role]
    bystanders = {r: Parameter(torch.ones(3, 3, dtype=torch.float64)) for r in others}
    composite = optimizers.build_optimizer(
        {role: [("weight", W)], **{r: [(r, p)] for r, p in bystanders.items()}},
        {"lr": 0.01, "weight_decay": 0.1, role: {"name": name}, **{r: {"name": "sgd"} for r in others}},
    )
    by_itself = build(name, [alone], {}, shared={"lr": 0.01, "weight_decay": 0.1}, role=role)
    assert torch.equal(train(composite, W, X, Y, 4), train(by_itself, alone, X, Y, 4))
    # A parameter without a gradient is not touched, not even by weight decay.
    assert all(torch.equal(p.detach(), torch.ones_like(p)) for p in bystanders.values())


def golden(name: str) -> list[float]:
    W, X, Y = problem()
    with torch.no_grad():
        W.copy_(torch.linspace(-1, 1, 54, dtype=torch.float64).sin().view(6, 9))
    W = train(make(name, W, lr=0.05, weight_decay=0.1), W, X, Y, 10)
    return [W[0, 0].item(), W[1, 2].item(), W[2, 3].item(), W.norm().item()]


@pytest.mark.parametrize("name", NAMES)
def test_golden_trajectory(name: str) -> None:
    found = golden(name)
    assert found == golden(name), f"{name} does not repeat itself with the same seed"
    assert name in GOLDEN, f"record the trajectory of {name}: {found}"
    assert found == pytest.approx(GOLDEN[name], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_zero_changes_nothing(name: str) -> None:
    W, X, Y = problem()
    assert torch.equal(train(make(name, W, lr=0.0, weight_decay=0.1), W, X, Y, 3), torch.zeros_like(W))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_zero_changes_nothing(name: str) -> None:
    W = Parameter(torch.ones(4, 3, dtype=torch.float64))
    optimizer = make(name, W)
    for _ in range(3):
        W.grad = torch.zeros_like(W)
        optimizer.step()
    assert torch.equal(W.detach(), torch.ones_like(W))


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_reaches_it(name: str) -> None:
    """With the learning rate at zero from update 3 on, the weights stay where two updates took them."""
    W, X, Y = problem()
    optimizer = make(name, W)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: float(t < 2))
    seen = []
    for _ in range(4):
        seen.append(train(optimizer, W, X, Y, 1))
        scheduler.step()
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[3])


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_trains_on_as_the_original(name: str) -> None:
    W, X, Y = problem()
    optimizer = make(name, W)
    train(optimizer, W, X, Y, 3)
    copied, weight = deepcopy((optimizer, W))
    assert torch.equal(train(copied, weight, X, Y, 3), train(optimizer, W, X, Y, 3))
