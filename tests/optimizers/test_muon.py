"""Muon against its definition: the polar factor, the momentum, the units of lr, and torch's own Muon."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import Parameter

from li2_lightning.theory.muon import polar_factor
from li2_lightning.verification.findings import draw
from optimizers import Muon, OptimizerError, build_optimizer
from optimizers.muon.muon import update_scale
from optimizers.muon.orthogonalize import CLASSIC, SCHEDULE, orthogonalize

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SHAPES = [(5, 5), (4, 11), (11, 4), (3, 5, 7), (2, 3, 9, 4)]


def with_singular_values(rows: int, columns: int, values: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(draw(rows, columns), full_matrices=False)
    return (U * values) @ Vh


def step(weight: Tensor, *gradients: Tensor, **hyperparameters: object) -> Tensor:
    """The weight after one update for each gradient."""
    parameter = Parameter(weight.clone())
    optimizer = Muon([parameter], **hyperparameters)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


# -- orthogonalize -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_is_the_polar_factor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    M = draw(*shape, dtype=dtype)
    factor = orthogonalize(M, "svd")
    exact = torch.finfo(dtype).eps * 100
    assert factor.dtype == dtype
    torch.testing.assert_close(factor, polar_factor(M), rtol=0, atol=exact)
    torch.testing.assert_close(
        torch.linalg.svdvals(factor), torch.ones(()).expand_as(torch.linalg.svdvals(factor)).to(factor.abs())
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    M = draw(*shape, dtype=dtype)
    a, b, c = CLASSIC
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    s = S / torch.linalg.vector_norm(S, dim=-1, keepdim=True)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalize(M), (U * s.unsqueeze(-2)) @ Vh, rtol=0, atol=torch.finfo(dtype).eps * 500)


@pytest.mark.parametrize(("rows", "columns"), [(20, 20), (20, 90), (90, 20)])
def test_newton_schulz_singular_values_lie_in_the_known_band(rows: int, columns: int) -> None:
    values = torch.logspace(0, -2, 20, dtype=torch.float64)
    found = torch.linalg.svdvals(orthogonalize(with_singular_values(rows, columns, values)))
    assert 0.68 < found.min() < found.max() < 1.21
    # One step is not there yet: the band is the work of five.
    assert torch.linalg.svdvals(orthogonalize(with_singular_values(rows, columns, values), steps=1)).min() < 0.1


@pytest.mark.parametrize("steps", [5, 12, 30])
def test_iterating_on_the_small_side_is_as_accurate_in_float32(steps: int) -> None:
    """At condition 10⁴: within 2e-3 of the same iteration in float64, and never beyond the band."""
    M = with_singular_values(24, 200, torch.logspace(0, -4, 24, dtype=torch.float64))
    exact, found = orthogonalize(M, steps=steps), orthogonalize(M.float(), steps=steps).double()
    assert (found - exact).norm() / exact.norm() < 2e-3
    assert torch.linalg.svdvals(found).max() < 1.21


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_orthogonalize_ignores_length_and_commutes_with_transposition(method: str) -> None:
    M = draw(6, 10, dtype=torch.complex128)
    factor = orthogonalize(M, method)
    torch.testing.assert_close(orthogonalize(1e3 * M, method), factor)
    torch.testing.assert_close(orthogonalize(M.mH, method), factor.mH)


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_a_batch_is_its_matrices_one_by_one(method: str) -> None:
    M = draw(2, 3, 4, 9)
    one_by_one = torch.stack([torch.stack([orthogonalize(m, method) for m in row]) for row in M])
    torch.testing.assert_close(orthogonalize(M, method), one_by_one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_svd_of_a_rank_deficient_matrix_is_the_polar_factor_on_its_range(dtype: torch.dtype) -> None:
    M = draw(8, 3, dtype=dtype) @ draw(3, 12, dtype=dtype, seed=1)
    factor = orthogonalize(M, "svd")
    values = torch.linalg.svdvals(factor)
    torch.testing.assert_close(values[:3], torch.ones_like(values[:3]))
    assert values[3:].max() < 1e-5
    # factor = M (MᴴM)^{+½}: its inner product with M is the nuclear norm.
    torch.testing.assert_close((factor.conj() * M).sum().real, torch.linalg.svdvals(M).sum())


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_zero_stays_zero_and_not_a_number_stays_visible(method: str) -> None:
    batch = torch.zeros(2, 3, 5)
    assert torch.equal(orthogonalize(batch, method), batch)
    for bad in (torch.inf, torch.nan):
        M = draw(2, 3, 5)
        M[1, 0, 0] = bad
        result = orthogonalize(M, method)
        torch.testing.assert_close(result[0], orthogonalize(M[0], method))
        assert result[1].isnan().any()
        assert orthogonalize(M[1], method).isnan().any()


def test_half_precision_is_computed_in_float32() -> None:
    M = draw(4, 7, dtype=torch.float32).bfloat16()
    factor = orthogonalize(M, "svd")
    assert factor.dtype == torch.bfloat16
    assert torch.equal(factor, polar_factor(M.float()).bfloat16())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(3),), r"not a tensor of shape \(3,\)"),
        ((torch.ones(3, 3), "svdd"), "Did you mean 'svd'"),
        ((torch.ones(3, 3), "newton_schulz", 0), "at least one step"),
    ],
)
def test_orthogonalize_refuses(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        orthogonalize(*arguments)


# -- the update ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_update_is_minus_lr_times_the_polar_factor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    W, G = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    found = step(W, G, lr=0.3, orthogonalization="svd")
    torch.testing.assert_close(found, W - 0.3 * polar_factor(G))
    # In units: without a scale, lr is the spectral norm of an update.
    norms = torch.linalg.matrix_norm(found - W, ord=2)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.3))


def test_an_update_never_points_uphill() -> None:
    """⟨UVᵀ, G⟩ = tr D: the nuclear norm with the exact factor, and positive with the approximate one."""
    for seed in range(20):
        G = draw(7, 12, seed=seed)
        for method in ("svd", "newton_schulz"):
            moved = step(torch.zeros(7, 12, dtype=torch.float64), G, lr=1.0, orthogonalization=method)
            assert (moved * G).sum() < 0
        exact = step(torch.zeros(7, 12, dtype=torch.float64), G, lr=1.0, orthogonalization="svd")
        torch.testing.assert_close(-(exact * G).sum(), torch.linalg.svdvals(G).sum())


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("style", ["ema", "heavy_ball"])
def test_momentum_by_hand(style: str, nesterov: bool) -> None:
    G1, G2, beta = draw(4, 6, seed=1), draw(4, 6, seed=2), 0.8
    if style == "ema":
        m1 = 0.2 * G1
        m2 = 0.8 * m1 + 0.2 * G2
        d1, d2 = (0.8 * m1 + 0.2 * G1, 0.8 * m2 + 0.2 * G2) if nesterov else (m1, m2)
    else:
        m1 = G1
        m2 = 0.8 * m1 + G2
        d1, d2 = (0.8 * m1 + G1, 0.8 * m2 + G2) if nesterov else (m1, m2)
    W = draw(4, 6)
    parameter = Parameter(W.clone())
    optimizer = Muon(
        [parameter], lr=0.1, momentum=beta, nesterov=nesterov, momentum_style=style, orthogonalization="svd"
    )
    for G in (G1, G2):
        parameter.grad = G.clone()
        optimizer.step()
    torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], m2)
    torch.testing.assert_close(parameter.detach(), W - 0.1 * polar_factor(d1) - 0.1 * polar_factor(d2))
    # A second update that ignored momentum would be polar_factor(G2).
    assert not torch.allclose(polar_factor(d2), polar_factor(G2))


def test_both_styles_of_momentum_take_the_same_steps() -> None:
    gradients = [draw(4, 6, seed=seed) for seed in range(5)]
    W = draw(4, 6)
    ema, heavy = (step(W, *gradients, momentum_style=style) for style in ("ema", "heavy_ball"))
    torch.testing.assert_close(ema, heavy)


def test_decoupled_decay_shrinks_the_weights_and_not_the_direction() -> None:
    W, G = draw(4, 6), draw(4, 6, seed=1)
    found = step(W, G, lr=0.1, weight_decay=0.5, orthogonalization="svd")
    torch.testing.assert_close(found, (1 - 0.1 * 0.5) * W - 0.1 * polar_factor(G))


def test_coupled_decay_enters_the_gradient() -> None:
    W, G = draw(4, 6), draw(4, 6, seed=1)
    found = step(W, G, lr=0.1, weight_decay=0.5, decoupled=False, orthogonalization="svd")
    torch.testing.assert_close(found, W - 0.1 * polar_factor(G + 0.5 * W))


@pytest.mark.parametrize("hyperparameters", [{"decoupled": False}, {"momentum": 0.0}, {"nesterov": False}])
def test_gradients_are_read_and_not_written(hyperparameters: dict[str, object]) -> None:
    parameter, G = Parameter(draw(4, 6)), draw(4, 6, seed=1)
    optimizer = Muon([parameter], weight_decay=0.5, **hyperparameters)
    for _ in range(2):
        parameter.grad = G.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, G)


INPUTS, OUTPUTS = 4, 9
SCALE_VALUES = {
    "none": 1.0,
    "rms": 3.0,
    "spectral": 1.5,
    "match_adamw": 0.6,
}


@pytest.mark.parametrize(("scale", "value"), SCALE_VALUES.items())
@pytest.mark.parametrize(
    ("orientation", "shape"), [("input_output", (INPUTS, OUTPUTS)), ("output_input", (OUTPUTS, INPUTS))]
)
def test_scale_follows_the_declared_orientation(
    scale: str, value: float, orientation: str, shape: tuple[int, int]
) -> None:
    assert update_scale(shape, scale, orientation) == pytest.approx(value)
    zero, G = torch.zeros(2, *shape, dtype=torch.float64), draw(2, *shape)
    moved = step(zero, G, lr=0.1, scale=scale, orientation=orientation, orthogonalization="svd")
    torch.testing.assert_close(moved, -0.1 * value * polar_factor(G))


def test_the_shape_alone_decides_nothing() -> None:
    assert update_scale((4, 9), "spectral", "input_output") == pytest.approx(1.5)
    assert update_scale((4, 9), "spectral", "output_input") == pytest.approx(1 / 1.5)


def test_units_of_the_scales() -> None:
    """rms: RMS of the entries; match_adamw: a fifth of it; spectral: RMS out for RMS 1 in, at most."""
    G = draw(INPUTS, OUTPUTS)

    def moved(scale: str) -> Tensor:
        return step(torch.zeros_like(G), G, lr=0.1, scale=scale, orthogonalization="svd")

    assert moved("rms").square().mean().sqrt().item() == pytest.approx(0.1)
    assert moved("match_adamw").square().mean().sqrt().item() == pytest.approx(0.02)
    strongest_input = torch.linalg.svd(moved("spectral")).U[:, 0] * math.sqrt(INPUTS)
    assert (strongest_input @ moved("spectral")).square().mean().sqrt().item() == pytest.approx(0.1)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("scale", "theirs", "shape"),
    [
        ("match_adamw", "match_rms_adamw", (12, 30)),
        ("match_adamw", "match_rms_adamw", (30, 12)),
        ("none", "original", (12, 30)),  # fewer outputs than inputs: theirs does not scale
        ("spectral", "original", (30, 12)),
    ],
)
def test_agrees_with_torch_where_the_two_overlap(
    scale: str, theirs: str, shape: tuple[int, int], nesterov: bool
) -> None:
    """Torch's matrices are outputs × inputs and its Newton–Schulz is bfloat16, of eight bits."""
    W = draw(*shape, dtype=torch.float32)
    gradients = [draw(*shape, dtype=torch.float32, seed=seed) for seed in (1, 2, 3)]
    common = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    ours = step(W, *gradients, scale=scale, orientation="output_input", **common)
    parameter = Parameter(W.clone())
    reference = torch.optim.Muon([parameter], adjust_lr_fn=theirs, **common)
    for gradient in gradients:
        parameter.grad = gradient
        reference.step()
    moved = (ours - W).norm()
    assert (ours - parameter.detach()).norm() < 0.02 * moved
    # The comparison can fail: a wrong momentum is off by more.
    other = step(W, *gradients, scale=scale, orientation="output_input", **common | {"momentum": 0.5})
    assert (other - parameter.detach()).norm() > 0.05 * moved


def test_the_closure_is_evaluated_with_gradients_and_returned() -> None:
    W = Parameter(torch.ones(2, 3))

    def closure() -> Tensor:
        loss = W.square().sum()
        loss.backward()
        return loss

    assert Muon([W], lr=0.1).step(closure).item() == 6.0
    assert not torch.equal(W.detach(), torch.ones(2, 3))


# -- what it refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), ()])
def test_refuses_what_is_no_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptimizerError, match="give its role another optimizer, for example adam"):
        Muon([Parameter(torch.zeros(3, 3)), Parameter(torch.zeros(shape))])


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        ({"lr": -1}, "lr must be at least 0, not -1"),
        ({"lr": math.nan}, "lr must be"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"steps": 0}, "steps must be a whole number from 1 on"),
        ({"steps": 2.5}, "steps must be"),
        ({"momentum_style": "emma"}, "Did you mean 'ema'"),
        ({"orthogonalization": "newton-schulz"}, "Did you mean 'newton_schulz'"),
        ({"scale": "spectrum"}, "Did you mean 'spectral'"),
        ({"orientation": "outputinput"}, "Did you mean 'output_input'"),
    ],
)
def test_refuses_a_hyperparameter_out_of_range(hyperparameters: dict[str, object], words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        Muon([Parameter(torch.zeros(3, 3))], **hyperparameters)


def test_a_refused_group_is_not_kept() -> None:
    optimizer = Muon([Parameter(torch.zeros(3, 3))])
    with pytest.raises(OptimizerError, match="momentum must be"):
        optimizer.add_param_group({"params": [Parameter(torch.zeros(3, 3))], "momentum": 2.0})
    assert len(optimizer.param_groups) == 1


def test_refuses_a_sparse_gradient() -> None:
    table = torch.nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(OptimizerError, match="dense"):
        Muon(table.parameters()).step()


def test_the_published_preset_takes_the_published_steps() -> None:
    """Written out by hand; W is in float64, so float32 in the polynomials shows as an error of some 1e-7."""
    preset = yaml.safe_load((Path(__file__).parents[2] / "configs" / "optimizer" / "muon_published.yaml").read_text())
    W, V = Parameter(draw(6, 4)), Parameter(draw(4, 3, seed=1))
    optimizer = build_optimizer({"hidden": [("W", W)], "output": [("V", V)], "embedding": []}, preset)
    w, v, momentum = W.detach().clone(), Parameter(V.detach().clone()), torch.zeros(6, 4)
    adam = torch.optim.Adam([v], lr=0.01, weight_decay=2e-4)
    for number in range(5):
        W.grad, V.grad, v.grad = draw(6, 4, seed=number), draw(4, 3, seed=9 + number), draw(4, 3, seed=9 + number)
        optimizer.step()
        adam.step()
        momentum = 0.99 * momentum + 0.01 * W.grad
        X = (momentum / momentum.norm()).float()
        for a, b, c in SCHEDULE:
            A = X @ X.T
            X = a * X + (b * A + c * A @ A) @ X
        w = (1 - 0.01 * 2e-4) * w - 0.01 * X.double()
    torch.testing.assert_close(W.detach(), w, rtol=0, atol=1e-6)
    torch.testing.assert_close(V.detach(), v.detach())
