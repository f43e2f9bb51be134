"""Which side of a parameter is its input and of how many matrices it is made: declared by the network, read by ours."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from li2_lightning.config.schema import NetworkConfig, TransformerConfig
from li2_lightning.networks.base import Network
from li2_lightning.networks.build import build_network
from li2_lightning.seeds import generator
from li2_lightning.theory.muon import polar_factor
from optimizers import CompositeOptimizer, Muon, OptimizerError, build_optimizer
from optimizers.layouts import matrices
from optimizers.sphere_ascent import SphereAscent

WIDTH, HEADS, FEEDFORWARD, TOKENS, OPERANDS = 16, 4, 64, 5, 3
QKV = "encoder.layers.0.self_attn.in_proj_weight"
OUT = "encoder.layers.0.self_attn.out_proj.weight"
UP, DOWN = "encoder.layers.0.linear1.weight", "encoder.layers.0.linear2.weight"
EXACT = {"name": "muon", "lr": 1.0, "orthogonalization": "svd"}


def build(**options: Any) -> Network:
    config = NetworkConfig(**{"width": WIDTH, **options})
    sizes = SimpleNamespace(num_tokens=TOKENS, num_operands=OPERANDS, num_classes=TOKENS)
    return build_network(config, sizes, torch.float64, generator(0, "test"))


def transformer() -> Network:
    return build(name="transformer", activation="relu", transformer=TransformerConfig(HEADS, 1, FEEDFORWARD))


def optimizer_of(network: Network, **hidden: Any) -> CompositeOptimizer:
    section = {"weight_decay": 0.0, "hidden": hidden, "output": {"name": "sgd"}, "embedding": {"name": "sgd"}}
    return build_optimizer(network.roles(), section, network.layouts())


def gradients(network: Network) -> dict[str, Tensor]:
    """A random gradient for every parameter, in place and by name."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def updates(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """W before minus W after one step, by name: what is subtracted."""
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer.step()
    return {name: before[name] - parameter.detach() for name, parameter in network.named_parameters()}


def spectral_norm(M: Tensor) -> float:
    return torch.linalg.matrix_norm(M, ord=2).item()


@pytest.mark.parametrize("wrapped", [{}, {"name": "slow_gradients", "inner": "muon", "amplification": 0.0}])
def test_the_scale_of_a_transformers_update_is_by_outputs_over_inputs(wrapped: dict[str, Any]) -> None:
    """Feed-forward 4× as wide as the stream: 2 up, ½ down. Q, K and V are 1 each, √3 on top of each other."""
    network = transformer()
    gradients(network)
    found = updates(network, optimizer_of(network, **{**EXACT, "scale": "spectral", **wrapped}))
    norms = {name: spectral_norm(found[name]) for name in (UP, DOWN, QKV, OUT)}
    assert norms == pytest.approx({UP: 2.0, DOWN: 0.5, QKV: math.sqrt(3), OUT: 1.0})


@pytest.mark.parametrize(
    ("scale", "factor"), [("none", 1.0), ("rms", WIDTH**0.5), ("match_adamw", 0.2 * WIDTH**0.5), ("spectral", 1.0)]
)
def test_q_k_and_v_are_orthogonalized_and_scaled_one_by_one(scale: str, factor: float) -> None:
    """Every scale is that of a WIDTH × WIDTH matrix, not of the three together."""
    network = transformer()
    given = gradients(network)
    found = updates(network, optimizer_of(network, **EXACT, scale=scale))
    for update, gradient in zip(found[QKV].chunk(3), given[QKV].chunk(3), strict=True):
        torch.testing.assert_close(update, factor * polar_factor(gradient))
    torch.testing.assert_close(found[OUT], factor * polar_factor(given[OUT]))


def test_on_request_every_head_of_q_k_and_v_is_a_matrix_and_the_output_projection_stays_whole() -> None:
    network = transformer()
    given = gradients(network)
    found = updates(network, optimizer_of(network, **EXACT, scale="spectral", split_heads=True))
    factor = math.sqrt(WIDTH / HEADS / WIDTH)
    for update, gradient in zip(found[QKV].chunk(3 * HEADS), given[QKV].chunk(3 * HEADS), strict=True):
        torch.testing.assert_close(update, factor * polar_factor(gradient))
    torch.testing.assert_close(found[OUT], polar_factor(given[OUT]))


@pytest.mark.parametrize(
    ("options", "name", "parts"),
    [
        ({}, "W", 1),
        ({"inner_product": True}, "W", OPERANDS),
        ({"inner_product": True, "shared_embedding": True}, "W", 1),
        ({"hidden_layers": 1}, "H1", 1),
    ],
)
def test_the_operands_tables_are_one_matrix_where_their_projections_are_added_and_several_where_multiplied(
    options: dict[str, Any], name: str, parts: int
) -> None:
    network = build(**options)
    given = gradients(network)
    found = updates(network, optimizer_of(network, **EXACT, scale="spectral"))
    for update, gradient in zip(found[name].chunk(parts), given[name].chunk(parts), strict=True):
        inputs, outputs = gradient.shape
        torch.testing.assert_close(update, math.sqrt(outputs / inputs) * polar_factor(gradient))


@pytest.mark.parametrize(
    ("make", "name"),
    [(transformer, "tokens"), (transformer, "positions"), (lambda: build(trainable_embedding=True), "E")],
)
def test_a_table_is_one_hots_times_outputs(make: Callable[[], Network], name: str) -> None:
    network = make()
    gradients(network)
    table = network.get_parameter(name)
    optimizer = build_optimizer(
        {"embedding": [(name, table)]}, {"embedding": {**EXACT, "scale": "spectral"}}, network.layouts()
    )
    assert spectral_norm(updates(network, optimizer)[name]) == pytest.approx(math.sqrt(table.shape[1] / len(table)))


@pytest.mark.parametrize(
    "options",
    [{}, {"hidden_layers": 2}, {"trainable_embedding": True}, {"complex_weights": True}, {"inner_product": True}],
    ids=str,
)
def test_every_matrix_of_the_two_layer_network_is_inputs_by_outputs(options: dict[str, Any]) -> None:
    network = build(**options)
    assert network.layouts().keys() == dict(network.named_parameters()).keys()
    assert {layout["orientation"] for layout in network.layouts().values()} == {"input_output"}


def test_every_matrix_of_the_transformer_is_declared_and_no_vector_is() -> None:
    network = transformer()
    found = {name: layout["orientation"] for name, layout in network.layouts().items()}
    torchs = dict.fromkeys((QKV, OUT, UP, DOWN), "output_input")
    assert found == {**dict.fromkeys(("V", "tokens", "positions"), "input_output"), **torchs}


def test_sphere_ascent_normalizes_what_reaches_a_node_whichever_way_the_matrix_lies() -> None:
    network = build(inner_product=True)
    gradients(network)
    optimizer_of(network, name="optimizers.sphere_ascent:SphereAscent").step()
    for table in network.get_parameter("W").detach().chunk(OPERANDS):
        torch.testing.assert_close(table.norm(dim=0), torch.ones(WIDTH, dtype=torch.float64))
    network = transformer()
    gradients(network)
    optimizer_of(network, name="optimizers.sphere_ascent:SphereAscent").step()
    for name in (QKV, OUT, UP, DOWN):
        norms = network.get_parameter(name).detach().norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_sphere_ascent_climbs_the_same_way_in_a_transposed_matrix() -> None:
    torch.manual_seed(0)
    w, g = torch.randn(2, 4, 7, dtype=torch.float64)
    plain, transposed = Parameter(w.clone()), Parameter(w.T.clone())
    plain.grad, transposed.grad = g, g.T.contiguous()
    SphereAscent([plain]).step()
    optimizer = SphereAscent([transposed])
    optimizer.param_groups[0]["layouts"] = [{"orientation": "output_input"}]
    optimizer.step()
    torch.testing.assert_close(transposed.detach().T, plain.detach())


@pytest.mark.parametrize(("options", "name"), [({"name": "transformer"}, QKV), ({"inner_product": True}, "W")], ids=str)
def test_an_orthogonal_gradient_is_orthogonal_to_each_fused_matrix(options: dict[str, Any], name: str) -> None:
    network = transformer() if "name" in options else build(**options)
    gradients(network)
    weight = network.get_parameter(name).detach().clone()
    found = updates(network, optimizer_of(network, name="orthogonal_gradient", inner="sgd", lr=1.0))[name]
    for w, g in zip(weight.chunk(3), found.chunk(3), strict=True):
        assert (w * g).sum().item() == pytest.approx(0, abs=1e-12)
        assert g.norm() > 1


def test_layouts_survive_copies_and_checkpoints_as_plain_values() -> None:
    network = transformer()
    optimizer = optimizer_of(network, **EXACT, scale="spectral", split_heads=True)
    gradients(network)
    optimizer.step()
    copied, twin = deepcopy((optimizer, network))
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = transformer()
    resumed.load_state_dict(saved["network"])
    restored = optimizer_of(resumed, **EXACT, scale="spectral", split_heads=True)
    restored.load_state_dict(saved["optimizer"])
    for each, its in ((network, optimizer), (twin, copied), (resumed, restored)):
        gradients(each)
        its.step()
        layouts = dict(zip(its.param_groups[0]["param_names"], its.param_groups[0]["layouts"], strict=True))
        assert layouts[QKV] == {"orientation": "output_input", "axis": -2, "matrices": 3, "heads": HEADS}
        for name, parameter in each.named_parameters():
            assert torch.equal(parameter, network.get_parameter(name)), name


def test_a_run_hands_its_networks_layouts_to_its_optimizer(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(
        "network.name=transformer", "network.activation=relu", "max_steps=1", "optimizer.hidden.name=muon",
        "network.transformer.feedforward=64", "optimizer.hidden.scale=spectral", "optimizer.hidden.lr=0.5",
        "optimizer.hidden.orthogonalization=svd", "optimizer.hidden.weight_decay=0",
    )  # fmt: skip
    before, after = run.seen[0].weights, run.seen[1].weights
    norms = {name: spectral_norm(after[name] - before[name]) / 0.5 for name in (UP, DOWN, OUT)}
    assert norms == pytest.approx({UP: 2.0, DOWN: 0.5, OUT: 1.0})


# -- what is not declared, and what contradicts ----------------------------------------------------------------------


@pytest.mark.parametrize(("orientation", "norm"), [(None, 2.0), ("input_output", 2.0), ("output_input", 0.5)])
def test_of_an_undeclared_matrix_the_user_says_the_orientation(orientation: str | None, norm: float) -> None:
    weight = Parameter(torch.zeros(4, 16, dtype=torch.float64))
    weight.grad = torch.randn(4, 16, dtype=torch.float64)
    section = {"hidden": {**EXACT, "scale": "spectral", "orientation": orientation}}
    build_optimizer({"hidden": [("weight", weight)]}, section).step()
    assert spectral_norm(weight.detach()) == pytest.approx(norm)


@pytest.mark.parametrize(
    ("make", "orientation", "name"),
    [(transformer, "input_output", QKV), (build, "output_input", "W")],
)
def test_an_orientation_that_contradicts_the_network_is_one_sentence(
    make: Callable[[], Network], orientation: str, name: str
) -> None:
    other = {"input_output": "output_input", "output_input": "input_output"}[orientation]
    for section in ({"name": "muon"}, {"name": "slow_gradients", "inner": "muon"}):
        with pytest.raises(OptimizerError) as refused:
            optimizer_of(make(), **section, orientation=orientation)
        assert str(refused.value) == (
            f"optimizer.hidden: {section['name']}: orientation={orientation} contradicts the network, which declares "
            f"{name} as {other}; leave orientation out."
        )
        optimizer_of(make(), **section, orientation=other)  # says what is declared


@pytest.mark.parametrize("options", [{}, {"inner_product": True}], ids=str)
def test_splitting_heads_needs_heads(options: dict[str, Any]) -> None:
    with pytest.raises(OptimizerError, match=r"^optimizer\.hidden: muon: split_heads=true finds no attention heads: "):
        optimizer_of(build(**options), name="muon", split_heads=True)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"orientation": "rows"}, "'rows'; known are input_output, output_input"),
        ({"orientations": "input_output"}, "Did you mean 'orientation'"),
        ({"matrices": 4}, "into 4 equal parts, which it cannot be"),
        ({"axis": -1, "matrices": 3, "heads": 2}, "into 6 equal parts"),
        ({"axis": 0}, "axis must be -2 or -1"),
        ({"matrices": 0}, "into 0 equal parts"),
    ],
    ids=str,
)
def test_a_layout_that_does_not_fit_its_parameter(layout: Mapping[str, Any], words: str) -> None:
    weight = Parameter(torch.zeros(6, 9))
    with pytest.raises(OptimizerError, match=f"[Tt]he layout of weight.*{words}"):
        build_optimizer({"hidden": [("weight", weight)]}, {"hidden": {"name": "muon"}}, {"weight": layout})
    with pytest.raises(OptimizerError, match=f"[Tt]he layout of parameter 0.*{words}"):
        Muon([{"params": [weight], "layouts": [layout]}])


def test_matrices_are_views_along_either_axis() -> None:
    tensor = torch.arange(24.0).view(4, 6)
    rows = matrices(tensor, {"axis": -2, "matrices": 2})
    columns = matrices(tensor, {"axis": -1, "matrices": 1, "heads": 3}, split_heads=True)
    assert [part.tolist() for part in rows] == [tensor[:2].tolist(), tensor[2:].tolist()]
    assert [part.tolist() for part in columns] == [tensor[:, i : i + 2].tolist() for i in (0, 2, 4)]
    for part in (*rows, *columns):
        part.zero_()
    assert not tensor.any()
