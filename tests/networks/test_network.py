"""The networks against dense one-hot formulas; their initial weights, roles, and what weight files may hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from li2_lightning.config.schema import NetworkConfig, TransformerConfig
from li2_lightning.errors import InputError
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.networks.base import Moments, Network
from li2_lightning.networks.build import build_network
from li2_lightning.networks.transformer import TransformerNetwork
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.runs.checkpoints import read_weights
from li2_lightning.seeds import generator

M, K, C = 5, 6, 4
F64 = torch.float64


def build(
    operands: int = 2, dtype: torch.dtype = F64, seed: int = 0, tokens: int = M, classes: int = C, **options: Any
) -> Network:
    config = NetworkConfig(**{"width": K, **options})
    sizes = SimpleNamespace(num_tokens=tokens, num_operands=operands, num_classes=classes)
    given = read_weights(config.initial_weights, "network.initial_weights")
    return build_network(config, sizes, dtype, generator(seed, "test"), given)


def two_layer(**options: Any) -> TwoLayerNetwork:
    network = build(**options)
    assert isinstance(network, TwoLayerNetwork)
    return network


def rows(count: int = 17, operands: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(M, (count, operands), generator=torch.Generator().manual_seed(seed))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def dense(
    options: Mapping[str, Any], w: Mapping[str, Tensor], tokens: Tensor, statistics: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """F and Ŷ with X as a matrix of ones and zeros; batch norm with the statistics of the rows ``statistics``."""
    sigma = ACTIVATIONS[options.get("activation", "square")]
    both = tokens if statistics is None else torch.cat([statistics, tokens])
    X = functional.one_hot(both, M).to(w["W"].dtype)  # rows × operands × M
    if "E" in w:
        X = X @ w["E"]

    def norm(z: Tensor) -> Tensor:
        if not options.get("batch_norm"):
            return z
        known = z[: len(both) - len(tokens)] if statistics is not None else z
        centred = known - known.mean(dim=0)
        variance = (centred.conj() * centred).real.mean(dim=0)
        return (z - known.mean(dim=0)) / (variance + 1e-5).sqrt()

    if options.get("inner_product"):
        tables = [w["W"]] * X.shape[1] if options.get("shared_embedding") else w["W"].split(M)
        F = norm(torch.stack([X[:, i] @ tables[i] for i in range(X.shape[1])]).prod(dim=0))
    else:
        inputs = X.sum(dim=1) if options.get("shared_embedding") else X.flatten(1)
        F = sigma(norm(inputs @ w["W"]))
    for layer in range(1, options.get("hidden_layers", 0) + 1):
        through = F @ w[f"H{layer}"]
        F = sigma(norm(F + through if options.get("residual", True) else through))
    outputs = options.get("output_scale", 1.0) * (F @ w["V"])
    return F[-len(tokens) :], (outputs.real if outputs.is_complex() else outputs)[-len(tokens) :]


OPTIONS: list[dict[str, Any]] = [
    *({"activation": name} for name in ACTIVATIONS),
    {"hidden_layers": 2, "activation": "tanh"},
    {"hidden_layers": 2, "activation": "relu", "residual": False},
    {"complex_weights": True},
    {"complex_weights": True, "activation": "relu", "hidden_layers": 1},
    {"trainable_embedding": True},
    {"shared_embedding": True},
    {"shared_embedding": True, "trainable_embedding": True},
    {"batch_norm": True},
    {"batch_norm": True, "hidden_layers": 1, "activation": "silu", "complex_weights": True},
    {"inner_product": True},
    {"inner_product": True, "shared_embedding": True, "hidden_layers": 1, "activation": "tanh"},
    {"inner_product": True, "batch_norm": True, "complex_weights": True, "trainable_embedding": True},
    {"output_scale": 0.3},
    {"readout_init_scale": 0.0},
    {"readout_init_scale": 0.1},
]


def label(options: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("operands", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_the_forward_pass_is_the_dense_one(options: dict[str, Any], operands: int) -> None:
    network, tokens = build(operands, **options), rows(operands=operands)
    activity = network(tokens)
    features, outputs = dense(options, weights(network), tokens)
    torch.testing.assert_close(network.compute_features(tokens).last, features, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(activity.outputs, outputs, rtol=1e-10, atol=1e-10)
    assert activity.outputs.dtype == F64
    torch.testing.assert_close(
        (features @ network.readout).real if features.is_complex() else features @ network.readout,
        outputs,
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("options", [o for o in OPTIONS if "batch_norm" in o], ids=label)
def test_test_rows_are_normalized_by_the_statistics_of_the_training_rows(options: dict[str, Any]) -> None:
    network, train, test = build(**options), rows(17), rows(9, seed=1)
    moments = network(train).moments
    assert len(moments) == 1 + options.get("hidden_layers", 0)
    outputs = network(test, moments).outputs
    torch.testing.assert_close(outputs, dense(options, weights(network), test, train)[1], rtol=1e-10, atol=1e-10)
    # A row's output then does not depend on the rows beside it.
    torch.testing.assert_close(network(test[:2], moments).outputs, outputs[:2], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network(test).outputs, outputs, atol=1e-3)
    assert all(isinstance(entry, Moments) and entry.variance.dtype == F64 for entry in moments)


@pytest.mark.parametrize("depth", [0, 2])
def test_input_features_are_those_of_the_first_layer(depth: int) -> None:
    network, tokens = build(hidden_layers=depth, activation="relu"), rows()
    features = network.compute_features(tokens)
    shallow, _ = dense({"activation": "relu"}, weights(network), tokens)
    torch.testing.assert_close(features.first, shallow, rtol=1e-12, atol=1e-12)
    assert (features.first is features.last) is (depth == 0)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("complex_weights", [True, False])
def test_each_layer_is_the_weights_between_applied_to_the_layer_below(residual: bool, complex_weights: bool) -> None:
    network, tokens = two_layer(hidden_layers=2, residual=residual, complex_weights=complex_weights), rows()
    layers, between = network.layers(tokens), network.hidden_weights()
    assert [len(layers), len(between)] == [3, 2]
    for below, layer, A in zip(layers, layers[1:], between, strict=False):
        torch.testing.assert_close(layer.pre_activation, below.features @ A)
        torch.testing.assert_close(layer.features, network.activation(below.features @ A))
    assert torch.equal(layers[0].features, network.compute_features(tokens).first)
    assert torch.equal(layers[-1].features, network.compute_features(tokens).last)


@pytest.mark.parametrize("readout", ["gradient", "ridge"])
def test_a_ridge_readout_is_not_trained(readout: str) -> None:
    network, tokens = build(readout=readout), rows()
    network(tokens).outputs.square().sum().backward()
    assert (network.V.grad is not None) is (readout == "gradient")
    assert network.get_parameter("W").grad is not None


# -- initial weights --------------------------------------------------------------------------------------------------


def parts(values: Tensor) -> list[Tensor]:
    return [values.real, values.imag] if values.is_complex() else [values]


@pytest.mark.parametrize("complex_weights", [False, True])
def test_initial_weights_have_the_distribution_of_torch_nn_linear(complex_weights: bool) -> None:
    """Same support and same quantiles as nn.Linear of that fan-in.

    Real and imaginary parts are independent, each 1/√2 times as large, so that |w|² has the mean of a real weight.
    """
    network = build(
        tokens=60, classes=70, width=150, hidden_layers=1, trainable_embedding=True, complex_weights=complex_weights
    )
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    for name, inputs in (("W", 120), ("V", 150), ("H1", 150), ("E", 60)):
        fan_in = 2 * inputs if complex_weights else inputs
        with torch.random.fork_rng():
            torch.manual_seed(0)
            reference = nn.Linear(fan_in, 400, bias=False).weight.detach().flatten().double()
        for values in parts(network.get_parameter(name).detach()):
            values = values.flatten().double()
            assert values.abs().max().item() == pytest.approx(1 / math.sqrt(fan_in), rel=5e-3)
            assert values.abs().max() <= 1 / math.sqrt(fan_in)
            torch.testing.assert_close(
                values.quantile(grid), reference.quantile(grid), rtol=0, atol=0.07 / math.sqrt(fan_in)
            )
            assert values.var().item() == pytest.approx(reference.var().item(), rel=0.05)
        mean_square = network.get_parameter(name).detach().abs().square().mean().item()
        assert mean_square == pytest.approx(1 / (3 * inputs), rel=0.05)
        if complex_weights:
            both = torch.stack([part.flatten() for part in parts(network.get_parameter(name).detach())])
            assert torch.corrcoef(both)[0, 1].abs() < 0.06


@pytest.mark.parametrize(
    ("option", "scaled"),
    [("init_scale", {"W", "V", "H1", "E"}), ("hidden_init_scale", {"W"}), ("readout_init_scale", {"V"})],
)
@pytest.mark.parametrize("complex_weights", [False, True])
def test_an_init_scale_scales_its_weights_alone(option: str, scaled: set[str], complex_weights: bool) -> None:
    options = {"hidden_layers": 1, "trainable_embedding": True, "complex_weights": complex_weights}
    one = weights(build(**options))
    for scale in (0.1, 2.0, *([0.0] if option == "readout_init_scale" else [])):
        for name, values in weights(build(**options, **{option: scale})).items():
            expected = scale * one[name] if name in scaled else one[name]
            torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)


def test_init_scales_multiply_each_other() -> None:
    one, both = weights(build()), weights(build(init_scale=0.5, hidden_init_scale=3.0, readout_init_scale=0.2))
    torch.testing.assert_close(both["W"], 1.5 * one["W"], rtol=1e-12, atol=0)
    torch.testing.assert_close(both["V"], 0.1 * one["V"], rtol=1e-12, atol=0)


def test_the_init_scale_of_a_transformer_scales_every_matrix_and_no_other_vector() -> None:
    options = {"name": "transformer", "width": 8, "activation": "relu", "transformer": TransformerConfig(2, 1, 8)}
    one, scaled = weights(build(**options)), weights(build(**options, init_scale=0.3))
    for name, values in one.items():
        torch.testing.assert_close(scaled[name], (0.3 if values.ndim > 1 else 1) * values, rtol=1e-12, atol=0)


def test_initial_weights_depend_on_the_seed_and_not_on_precision_or_global_state() -> None:
    first = weights(build(hidden_layers=1, trainable_embedding=True, dtype=torch.float32))
    torch.manual_seed(99)
    again = weights(build(hidden_layers=1, trainable_embedding=True))
    other = weights(build(hidden_layers=1, trainable_embedding=True, seed=1))
    for name, values in first.items():
        assert values.dtype == torch.float32
        assert torch.equal(values.double(), again[name])
        assert not torch.equal(again[name], other[name])


# -- roles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [*OPTIONS, {"name": "transformer", "width": 8, "activation": "relu"}], ids=label)
def test_the_roles_cover_every_parameter_once(options: dict[str, Any]) -> None:
    network = build(**options)
    roles = network.roles()
    covered = [id(parameter) for named in roles.values() for _, parameter in named]
    assert sorted(covered) == sorted(id(parameter) for parameter in network.parameters())
    assert [name for name, _ in roles["output"]] == ["V"]
    assert all(parameter.ndim == 2 for _, parameter in roles["hidden"])
    if options.get("name") != "transformer":
        assert [name for name, _ in roles["embedding"]] == (["E"] if "trainable_embedding" in options else [])


# -- what diagnostics ask of the nodes --------------------------------------------------------------------------------


def test_node_features_can_be_differentiated_with_respect_to_the_input_weights() -> None:
    network, tokens = two_layer(), rows()[:5]
    w = network.input_weights()[:, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: network.node_features(tokens, w), (w,))
    torch.testing.assert_close(network.node_features(tokens, w).detach(), network.node_features(tokens, w.detach()))


@pytest.mark.parametrize("operands", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"complex_weights": True},
        {"trainable_embedding": True},
        {"shared_embedding": True},
        {"shared_embedding": True, "trainable_embedding": True, "activation": "tanh"},
        {"inner_product": True},
    ],
    ids=label,
)
def test_node_features_are_the_features_of_the_input_weights(options: dict[str, Any], operands: int) -> None:
    """`input_weights` are those from the one-hots, operand after operand, whatever table they come from."""
    network, tokens = two_layer(operands=operands, **options), rows(operands=operands)
    w = network.input_weights()
    assert w.shape == (operands * M, K)
    assert not w.requires_grad
    torch.testing.assert_close(
        network.node_features(tokens, w), network.compute_features(tokens).last, rtol=1e-10, atol=1e-12
    )
    X = functional.one_hot(tokens, M).flatten(1).to(w.dtype)
    if not options.get("inner_product"):
        torch.testing.assert_close(
            network.node_features(tokens, 2 * w), network.activation(2 * X @ w), rtol=1e-10, atol=1e-12
        )
    degree = network.node_degree
    if degree is not None:
        torch.testing.assert_close(
            network.node_features(tokens, 3 * w), 3.0**degree * network.node_features(tokens, w), rtol=1e-10, atol=1e-12
        )
    else:
        assert options.get("activation") == "tanh"


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("complex_weights", [False, True])
def test_normalize_weights_centres_or_caps(inner_product: bool, shared: bool, complex_weights: bool) -> None:
    options = {"inner_product": inner_product, "shared_embedding": shared, "complex_weights": complex_weights}
    network = build(normalize_weights=True, **options)
    with torch.no_grad():
        network.get_parameter("W").mul_(torch.linspace(0.5, 4, K))
    before = weights(network)
    network.normalize()
    after = weights(network)
    assert after["V"].sum(dim=1).abs().max() < 1e-12
    torch.testing.assert_close(after["V"], before["V"] - before["V"].mean(dim=1, keepdim=True))
    if inner_product:
        for old, new in zip(before["W"].split(M), after["W"].split(M), strict=True):
            norms = old.abs().square().sum(dim=0).sqrt()
            assert (norms > 1).any()
            assert (norms < 1).any()
            torch.testing.assert_close(new, old / torch.maximum(norms, torch.ones(K, dtype=F64)))
    else:
        torch.testing.assert_close(after["W"], before["W"] - before["W"].mean(dim=0))
    unchanged = build(normalize_weights=False, **options)
    start = weights(unchanged)
    unchanged.normalize()
    assert all(torch.equal(start[name], values) for name, values in weights(unchanged).items())


# -- weights from a file ----------------------------------------------------------------------------------------------

SHAPES = {"W": (2 * M, K), "V": (K, C)}


def arrays(dtype: Any = np.float64, **shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(shape).astype(dtype) for name, shape in {**SHAPES, **shapes}.items()}


def npz(path: Path, values: Mapping[str, Any]) -> str:
    np.savez(path / "weights.npz", **values)
    return str(path / "weights.npz")


def checkpoint(path: Path, values: Mapping[str, Tensor], **more: Any) -> str:
    state = {f"network.{name}": value for name, value in values.items()}
    torch.save({"state_dict": state, "li2_lightning": {"row": 3, "config": {}}, **more}, path / "row.ckpt")
    return str(path / "row.ckpt")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">f8", np.int32, np.int64])
def test_weights_from_an_npz_of_any_numbers(tmp_path: Path, dtype: Any) -> None:
    """(inputs × outputs); numbers of any width and byte order."""
    values = {name: np.abs(array * 9).astype(dtype) for name, array in arrays().items()}
    network = build(initial_weights=npz(tmp_path, values))
    for name, array in values.items():
        assert np.array_equal(network.get_parameter(name).detach().numpy(), array.astype(np.float64))


def test_weights_of_every_matrix_the_network_has(tmp_path: Path) -> None:
    values = arrays(E=(M, M), H1=(K, K), H2=(K, K))
    network = build(hidden_layers=2, trainable_embedding=True, initial_weights=npz(tmp_path, values))
    assert all(np.array_equal(network.get_parameter(name).detach().numpy(), array) for name, array in values.items())


@pytest.mark.parametrize("dtype", [np.float64, np.complex64, np.complex128])
def test_complex_weights_take_real_and_complex_arrays(tmp_path: Path, dtype: Any) -> None:
    values = arrays(dtype) if dtype == np.float64 else {k: (v + 0.5j).astype(dtype) for k, v in arrays().items()}
    network = build(complex_weights=True, initial_weights=npz(tmp_path, values))
    assert all(np.array_equal(network.get_parameter(name).detach().numpy(), array) for name, array in values.items())


def test_weights_from_a_checkpoint(tmp_path: Path) -> None:
    values = {name: torch.from_numpy(array) for name, array in arrays().items()}
    path = checkpoint(tmp_path, values, optimizer_states=[{"names": {"hidden": "adam"}}])
    network = build(initial_weights=path)
    assert all(torch.equal(network.get_parameter(name), value) for name, value in values.items())


def test_a_section_that_names_weights_builds_no_network_without_them() -> None:
    sizes = SimpleNamespace(num_tokens=M, num_operands=2, num_classes=C)
    for name in ("two_layer", "transformer"):
        config = NetworkConfig(name=name, width=8, initial_weights="weights.npz")
        with pytest.raises(ValueError, match=r"weights of network\.initial_weights='weights\.npz' are missing"):
            build_network(config, sizes, F64, generator(0, "test"))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in arrays().items() if key != name}


class Evil:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("code from a weight file ran",)


BROKEN_NPZ: list[tuple[Any, str]] = [
    (without("V"), r"has no array 'V'; this network has V, W\."),
    ({**arrays(), "E": np.ones((M, M))}, r"has an unexpected array 'E'; this network has V, W\."),
    (arrays(W=(2 * M, K + 1)), r"W has shape \(10, 7\), but this network needs \(10, 6\)\."),
    (arrays(V=(C, K)), r"V has shape \(4, 6\), but this network needs \(6, 4\)\."),
    ({**arrays(), "V": np.full((K, C), np.nan)}, r"V holds values that are not finite"),
    ({**arrays(), "V": np.full((K, C), -np.inf)}, r"V holds values that are not finite"),
    ({**arrays(), "V": np.full((K, C), 1j)}, r"V is complex, so it needs network\.complex_weights=true\."),
    ({**arrays(), "V": np.full((K, C), "a")}, r"V holds <U1; save it as float32"),
    ({**arrays(), "V": np.full((K, C), True)}, r"V holds bool; save it as float32"),
    (arrays(np.longdouble), r"[VW] holds (float128|float96); save it as float32"),
    (arrays(np.uint8), r"[VW] holds uint8; save it as float32"),
    ({**arrays(), "V": np.array([Evil()], dtype=object)}, r"is not a readable \.npz of plain arrays"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN_NPZ, ids=[message[:28] for _, message in BROKEN_NPZ])
def test_an_npz_that_does_not_fit_is_one_sentence(
    tmp_path: Path, values: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(initial_weights=npz(tmp_path, values))
    assert str(caught.value).startswith(f"network.initial_weights={str(tmp_path / 'weights.npz')!r}")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_number_too_large_for_the_networks_precision_is_refused(tmp_path: Path) -> None:
    values = {**arrays(), "V": np.full((K, C), 1e300)}
    assert build(initial_weights=npz(tmp_path, values)).V.dtype == F64
    with pytest.raises(InputError, match=r"V holds values that are not finite in torch\.float32"):
        build(initial_weights=npz(tmp_path, values), dtype=torch.float32)


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\x03\x04 cut off", None], ids=["empty", "text", "cut off", "one array"]
)
def test_a_file_that_is_no_npz_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.npz"
    if content is None:
        with path.open("wb") as stream:
            np.save(stream, np.ones(3))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.npz' is not a readable \.npz of plain arrays: .*[^.]\.$"):
        build(initial_weights=str(path))


@pytest.mark.parametrize("name", ["missing.npz", "missing.ckpt", ""])
def test_a_missing_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"is no file; give an \.npz with W and V, or a checkpoint"):
        build(initial_weights=str(tmp_path / name))


def test_a_checkpoint_that_does_not_fit_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {name: torch.from_numpy(array) for name, array in arrays().items()}
    good = Path(checkpoint(tmp_path, values))
    for content, message in (
        (good.read_bytes()[:-200], "is damaged or no checkpoint"),
        (b"text", "is damaged or no checkpoint"),
    ):
        bad = tmp_path / "bad.ckpt"
        bad.write_bytes(content)
        with pytest.raises(InputError, match=message):
            build(initial_weights=str(bad))
    torch.save({"state_dict": values}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint of this project"):
        build(initial_weights=str(tmp_path / "foreign.ckpt"))
    torch.save({"state_dict": values, "li2_lightning": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"is whole, but holds .*, which cannot be loaded safely"):
        build(initial_weights=str(tmp_path / "evil.ckpt"))
    with pytest.raises(InputError, match=r"has no array 'H1'; this network has V, W, H1"):
        build(hidden_layers=1, initial_weights=str(good))
    assert capsys.readouterr().out == ""


# -- the transformer --------------------------------------------------------------------------------------------------


def transformer(seed: int = 0, operands: int = 2, activation: str = "relu") -> TransformerNetwork:
    network = build(
        operands,
        seed=seed,
        name="transformer",
        width=8,
        activation=activation,
        transformer=TransformerConfig(heads=2, layers=1, feedforward=12),
    )
    assert isinstance(network, TransformerNetwork)
    return network


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_transformer_is_attention_and_a_perceptron_with_norms_after_them(activation: str) -> None:
    network, tokens = transformer(operands=3, activation=activation), rows(operands=3)
    w = weights(network)
    x = w["tokens"][tokens] + w["positions"]
    q, k, v = (x @ w["encoder.layers.0.self_attn.in_proj_weight"].T).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    attended = torch.cat(heads, dim=-1) @ w["encoder.layers.0.self_attn.out_proj.weight"].T

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    x = norm(x + attended)
    hidden = getattr(functional, activation)(x @ w["encoder.layers.0.linear1.weight"].T)
    x = norm(x + hidden @ w["encoder.layers.0.linear2.weight"].T)
    activity = network(tokens)
    torch.testing.assert_close(network.compute_features(tokens).last, x.mean(dim=1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(activity.outputs, x.mean(dim=1) @ w["V"], rtol=1e-10, atol=1e-10)
    assert activity.outputs.shape == (17, C)
    assert network.input_weights() is None


def test_the_transformers_roles_are_matrices_readout_and_tables_with_every_vector() -> None:
    roles = {role: {name for name, _ in named} for role, named in transformer().roles().items()}
    layer = "encoder.layers.0."
    assert roles["output"] == {"V"}
    assert roles["hidden"] == {
        f"{layer}{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")
    } | {f"{layer}self_attn.in_proj_weight"}  # fmt: skip
    assert {"tokens", "positions", f"{layer}norm1.weight", f"{layer}linear1.bias"} <= roles["embedding"]


def test_the_transformers_weights_depend_on_the_seed_alone_and_have_linears_bounds() -> None:
    torch.manual_seed(1)
    first = weights(transformer())
    torch.manual_seed(2)
    again, other = weights(transformer()), weights(transformer(seed=1))
    for name, values in first.items():
        assert torch.equal(values, again[name])
        if values.ndim == 2:
            assert not torch.equal(values, other[name])
            fan_in = values.shape[0] if name == "V" else 8 if name in ("tokens", "positions") else values.shape[1]
            assert 0.7 / math.sqrt(fan_in) < values.abs().max() <= 1 / math.sqrt(fan_in)
        else:
            assert torch.equal(values, torch.full_like(values, float("norm" in name and name.endswith("weight"))))


class Halved(TwoLayerNetwork):
    """A network of a plug-in."""


def not_a_network(config: NetworkConfig, *_: Any) -> NetworkConfig:
    """A plug-in that does not keep the contract."""
    return config


def test_a_network_is_found_by_name_or_import_path_and_must_be_one() -> None:
    assert type(build(name=f"{__name__}:Halved")) is Halved
    with pytest.raises(
        InputError, match=r"^Unknown network 'two_layers'; known are transformer, two_layer\. Did you mean"
    ):
        build(name="two_layers")
    with pytest.raises(InputError, match=r"not_a_network' gave a NetworkConfig, not a li2_lightning\.\S+\.Network\.$"):
        build(name=f"{__name__}:not_a_network")
