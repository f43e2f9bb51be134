"""StepState: G_F against autograd for every network, and each shared quantity against its dense formula, once a row."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from li2_lightning.config.schema import NetworkConfig
from li2_lightning.data import Rows
from li2_lightning.groups.finite_group import cyclic
from li2_lightning.losses import build_loss
from li2_lightning.measurement import step_state as state_module
from li2_lightning.measurement.feature_sums import FeatureSums
from li2_lightning.measurement.step_state import StepState
from li2_lightning.networks import kernel
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.networks.base import Activity, Features, Network
from li2_lightning.networks.build import build_network
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.seeds import generator
from li2_lightning.theory.lazy import ridge_readout
from tests.conftest import cosine

M, n = 5, 17
NETWORKS: list[dict[str, Any]] = [
    *({"activation": name} for name in ACTIVATIONS),
    *({"activation": name, "complex_weights": True} for name in ACTIVATIONS),
    {"output_scale": 0.3},
    {"output_scale": 0.3, "complex_weights": True},
    {"hidden_layers": 2, "activation": "tanh"},
    {"hidden_layers": 1, "complex_weights": True},
    {"inner_product": True},
    {"inner_product": True, "complex_weights": True},
    {"batch_norm": True, "hidden_layers": 1},
    {"name": "transformer", "width": 8, "activation": "relu"},
]


def label(options: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def draw(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


TOKENS, LABELS = draw(M, n, 2), draw(M - 1, n, seed=1)  # the last class has no row
ROWS = Rows(TOKENS, LABELS)


def network_of(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Network:
    sizes = SimpleNamespace(num_tokens=M, num_operands=2, num_classes=M)
    network = build_network(NetworkConfig(**{"width": 9, **options}), sizes, dtype, generator(0, "test"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # outputs of the size of the targets
    return network


def state_of(network: Network, step: int = 0, loss: str = "mse") -> StepState:
    return StepState(step, network(TOKENS), ROWS, network, build_loss(loss))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1e-3, expected.abs().max().item()))


@pytest.mark.parametrize("options", NETWORKS, ids=label)
def test_g_f_is_the_gradient_of_projected_mse_by_autograd(options: dict[str, Any]) -> None:
    """G_F = −(n/2)·∂L/∂F."""
    network = network_of(options)
    state = state_of(network)
    F = state.features.clone().requires_grad_()
    loss = build_loss("projected_mse")(network.read(F), LABELS)
    (gradient,) = torch.autograd.grad(loss, F)
    assert gradient.abs().max() > 1e-4
    close(state.feature_gradient, -n / 2 * gradient)
    assert state.structure.norm.item() == pytest.approx((n / 2 * gradient).abs().square().sum().sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_g_f_drives_the_weights_through_the_derivative_of_the_activation(name: str) -> None:
    """−(n/2)·∂L/∂W = Xᵀ(σ'(XW) ∘ G_F), with X as a matrix: the whole backward pass."""
    network = network_of({"activation": name})
    W = network.get_parameter("W")
    (gradient,) = torch.autograd.grad(build_loss("projected_mse")(network(TOKENS).outputs, LABELS), W)
    X = functional.one_hot(TOKENS, M).flatten(1).double()
    slope = ACTIVATIONS[name].derivative(X @ W.detach())
    close(X.T @ (slope * state_of(network).feature_gradient), -n / 2 * gradient)


@pytest.mark.parametrize("options", NETWORKS, ids=label)
def test_every_shared_quantity_is_the_dense_one(options: dict[str, Any]) -> None:
    network = network_of(options)
    state, features = state_of(network), network.compute_features(TOKENS)
    F, V = features.last.detach(), network.V.detach() * options.get("output_scale", 1.0)
    P = torch.eye(n, dtype=torch.float64) - 1 / n
    Y = torch.eye(M, dtype=torch.float64)[LABELS]
    outputs = F @ V
    R = P @ (Y - (outputs.real if outputs.is_complex() else outputs))
    Pc, Yc, Rc = (matrix.to(F.dtype) for matrix in (P, Y, R))
    first = features.first.detach()
    for actual, expected in (
        (state.readout, V),
        (state.one_hot_targets, Y),
        (state.centered_targets, P @ Y),
        (state.residual, R),
        (state.centered_features, Pc @ F),
        (state.feature_means, F.mean(dim=0)),
        (state.feature_norms, (Pc @ F).abs().square().sum(dim=0)),
        (state.class_counts, Y.sum(dim=0)),
        (state.class_sums, Yc.mT @ F),
        (state.target_features, (Pc @ Yc).mT @ Pc @ F),
        (state.target_input_features, (Pc @ Yc).mT @ Pc @ first),
        (state.residual_features, (Pc @ F).mH @ Rc),
        (state.residual_gram, R.T @ R),
        (state.feature_gradient, Rc @ V.mH),
    ):
        close(actual, expected)

    G = Rc @ V.mH
    assert {name: value.item() for name, value in asdict(state.structure).items()} == pytest.approx(
        {
            "norm": G.norm().item(),
            "independence": cosine(G, Pc @ Yc @ Yc.mT @ Pc @ F),
            "coupling": cosine(G, Rc @ Rc.mT @ F),
            "residual_alignment": cosine(R, P @ Y),
            "readout_alignment": cosine(V, F.mH @ Pc @ Yc),
            "readout_equilibrium": cosine(V, F.mH @ Rc),
            "effective_ridge": ((F.mH @ Rc).norm() / V.norm()).item(),
        },
        rel=1e-9,
        abs=1e-12,
    )


@pytest.mark.parametrize("ridge", [0.05, 5.0])
@pytest.mark.parametrize("options", [o for o in NETWORKS if not o.get("complex_weights")], ids=label)
def test_at_a_ridge_readout_equilibrium_and_coupling_are_one_and_proposition_1_holds(
    options: dict[str, Any], ridge: float
) -> None:
    network = network_of({**options, "output_scale": 1.0})
    F, Y = state_of(network).centered_features, state_of(network).centered_targets
    with torch.no_grad():
        network.V.copy_(ridge_readout(F, Y, ridge))
    state = state_of(network)
    assert state.structure.readout_equilibrium.item() == pytest.approx(1, abs=1e-9)
    assert state.structure.coupling.item() == pytest.approx(1, abs=1e-9)
    assert state.structure.effective_ridge.item() == pytest.approx(ridge, rel=1e-9)
    P = ridge * torch.linalg.inv(F @ F.T + ridge * torch.eye(n, dtype=torch.float64))
    B = torch.linalg.inv(F.T @ F + ridge * torch.eye(F.shape[1], dtype=torch.float64))
    close(state.feature_gradient, P @ Y @ Y.T @ F @ B, 1e-9)


@pytest.mark.parametrize("loss", ["mse", "projected_mse", "cross_entropy"])
@pytest.mark.parametrize("options", NETWORKS, ids=label)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_the_readouts_gradient_gives_what_a_product_of_its_own_gives(
    options: dict[str, Any], loss: str, dtype: torch.dtype, tolerance: float
) -> None:
    network = network_of(options, dtype)
    build_loss(loss)(network(TOKENS).outputs, LABELS).backward()  # type: ignore[no-untyped-call]
    direct, state = state_of(network, loss=loss), state_of(network, loss=loss)
    state.readout_gradient = network.V.grad
    close(state.residual_features, direct.residual_features, tolerance)
    if loss != "cross_entropy":
        # It is the gradient that is used, and not a second product.
        state = state_of(network, loss=loss)
        state.readout_gradient = network.V.grad * 2  # type: ignore[operator]
        assert not torch.allclose(state.residual_features, direct.residual_features)


@pytest.mark.parametrize("options", NETWORKS, ids=label)
def test_blocks_and_gram_matrices_are_those_of_the_features(options: dict[str, Any]) -> None:
    network, nodes = network_of(options), torch.tensor([3, 0, 3, 5])
    whole = network.compute_features(TOKENS).last.detach()
    centered = whole - whole.mean(dim=0)
    for state in (state_of(network), state_of(network)):
        close(torch.cat(list(state.share_blocks())), whole)
        close(state.gram(nodes), centered[:, nodes].mH @ centered[:, nodes])
        close(state.gram(), centered.mH @ centered)
        close(state.mean_spread, (centered @ whole.mean(dim=0).conj()).abs().square().sum())
        close(state.features, whole)  # and once more with the features at hand
        close(state.gram(nodes), centered[:, nodes].mH @ centered[:, nodes])
        close(torch.cat(list(state.share_blocks())), whole)


@pytest.mark.parametrize("options", NETWORKS, ids=label)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sums_taken_on_the_way_are_those_of_passes_of_their_own(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, since a resumed run may take the one where the run that was not stopped took the other."""
    monkeypatch.setattr(kernel, "block_rows", lambda *_: 5)
    network = network_of(options, dtype)
    sums = FeatureSums(LABELS, M)
    activity = network(TOKENS, observe=sums)
    state = StepState(0, activity, ROWS, network, build_loss("mse"), sums)
    state.start_second_pass()
    build_loss("mse")(activity.outputs, LABELS).backward()  # type: ignore[no-untyped-call]
    assert sums.second_pass_done == (network.why_plain() is None)
    alone = state_of(network)
    state.readout_gradient = alone.readout_gradient = network.V.grad
    for name in ("class_sums", "feature_means", "feature_norms", "mean_spread", "residual_features"):
        assert torch.equal(getattr(state, name), getattr(alone, name)), name


def test_features_of_weights_that_are_gone_are_an_error() -> None:
    network = network_of({})
    state = state_of(network)
    with torch.no_grad():
        network.W.mul_(2)  # type: ignore[operator, union-attr]
    for ask in (lambda: state.features, lambda: state.class_sums, lambda: state.gram(torch.tensor([0]))):
        with pytest.raises(RuntimeError, match="row 0 belong to weights that are gone; ask for them in on_step_state"):
            ask()


def test_each_quantity_is_computed_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two callbacks that ask for everything, deep network and all."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        original = getattr(state_module, name)

        def call(*args: Any) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(state_module, name, call)

    for name in ("center", "backpropagated_gradient", "gradient_structure", "one_hot"):
        counted(name)
    state = state_of(network_of({"hidden_layers": 1}))
    names = [
        name
        for name in dir(StepState)
        if not name.startswith("_") and type(vars(StepState)[name]).__name__ == "quantity"
    ]
    assert len(names) >= 10
    first = [getattr(state, name) for name in names]
    second = [getattr(state, name) for name in names]
    assert all(one is two for one, two in zip(first, second, strict=True))
    assert calls == {"center": 2, "backpropagated_gradient": 1, "gradient_structure": 1, "one_hot": 1}
    assert state.residual is state.residual


def test_nothing_is_computed_before_somebody_asks() -> None:
    state = state_of(network_of({}))
    names = {
        "step",
        "outputs",
        "targets",
        "network",
        "readout_gradient",
        "columns",
        "is_last",
        "whole",
        "place",
    }
    assert {name for name in vars(state) if not name.startswith("_")} == names
    assert "features" not in vars(state)


def test_the_shares_of_the_nodes_are_computed_once_and_need_a_group() -> None:
    network = network_of({})
    state = StepState(0, network(TOKENS), ROWS, network, build_loss("mse"), group=cyclic(M))
    assert state.node_shares is not None
    assert state.node_shares is state.node_shares
    close(state.node_shares.sum(dim=0), torch.ones(9, dtype=torch.float64))
    assert state_of(network).node_shares is None


def test_without_extra_layers_the_first_layers_features_are_the_features() -> None:
    shallow, deep = state_of(network_of({})), state_of(network_of({"hidden_layers": 1}))
    assert shallow.target_input_features is shallow.target_features
    assert not torch.allclose(deep.target_input_features, deep.target_features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_over_half_precision_features_are_taken_in_single(dtype: torch.dtype) -> None:
    network = network_of({})
    half = network.compute_features(TOKENS).last.to(dtype)
    activity = Activity(network(TOKENS).outputs.float(), Features(half, half))
    state = StepState(0, activity, ROWS, network.float(), build_loss("mse"))
    assert state.features.dtype == torch.float32
    assert state.residual_gram.dtype == state.structure.norm.dtype == torch.float64
    assert not state.features.requires_grad
    assert not state.outputs.requires_grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_single_precision_gives_the_same_scalars(activation: str) -> None:
    """Also where the mean of a feature is thirty times its deviation, as for the sigmoid at its start."""
    sizes = SimpleNamespace(num_tokens=23, num_operands=2, num_classes=23)
    tokens = torch.cartesian_prod(torch.arange(23), torch.arange(23))[::2]
    labels = tokens.sum(dim=1) % 23
    found = []
    for dtype in (torch.float32, torch.float64):
        config = NetworkConfig(width=64, activation=activation)
        network = build_network(config, sizes, dtype, generator(0, "test"))
        assert isinstance(network, TwoLayerNetwork)
        state = StepState(0, network(tokens), Rows(tokens, labels), network, build_loss("mse"))
        found.append({**asdict(state.structure), "norms": state.feature_norms.norm()})
    for name, exact in found[1].items():
        assert found[0][name].item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-5), name


def test_a_column_logged_twice_is_an_error_that_names_it() -> None:
    state = state_of(network_of({}), step=7)
    state.log("features/mine", 1.0)
    with pytest.raises(ValueError, match="'features/mine' is logged twice in row 7"):
        state.log("features/mine", 1.0)
    assert state.columns == {"features/mine": 1.0}
