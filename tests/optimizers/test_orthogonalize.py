"""The polynomials behind Muon: what they do to singular values, which are optimal, and in which precision."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import optimizers
from li2_lightning.verification.findings import draw
from optimizers import Muon, OptimizerError
from optimizers.muon import polar_table
from optimizers.muon.orthogonalize import METHODS, coefficients, optimal_quintics, orthogonalize

POLYNOMIAL = [method for method in METHODS if method != "svd"]


def follow(triples: object, x: Tensor) -> Tensor:
    for a, b, c in triples:
        x = a * x + b * x**3 + c * x**5
    return x


def grid(lower: float) -> Tensor:
    return torch.logspace(torch.tensor(lower).log10().item(), 0, 20001, dtype=torch.float64).clamp(lower, 1)


def error(triples: object, lower: float) -> float:
    return float((follow(triples, grid(lower)) - 1).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("method", POLYNOMIAL)
@pytest.mark.parametrize("shape", [(5, 5), (4, 11), (11, 4), (2, 3, 9, 4)])
def test_singular_values_follow_the_polynomials(method: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    M = draw(*shape, dtype=dtype)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    s = follow(coefficients(method, 5), S / torch.linalg.vector_norm(S, dim=-1, keepdim=True))
    expected = (U * s.unsqueeze(-2)) @ Vh
    torch.testing.assert_close(orthogonalize(M, method), expected, rtol=0, atol=torch.finfo(dtype).eps * 1000)


@pytest.mark.parametrize(
    ("method", "lower", "low", "high"),
    [
        ("newton_schulz", 0.002, 0.68, 1.21),
        ("newton_schulz_scheduled", 0.0013, 0.70, 1.16),
        ("polar_express", 0.001, 0.87, 1.13),
    ],
)
def test_five_steps_reach_the_documented_band(method: str, lower: float, low: float, high: float) -> None:
    found = follow(coefficients(method, 5), grid(lower))
    assert low < found.min() < found.max() < high
    assert follow(coefficients(method, 4), grid(lower)).min() < low


# -- optimal quintics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [1e-3, 0.03, 0.5])
def test_an_optimal_quintic_touches_its_error_four_times_in_turn(lower: float) -> None:
    """Chebyshev: a polynomial of three free coefficients is optimal if and only if this holds."""
    deviation = follow(optimal_quintics(1, lower), grid(lower)) - 1
    E = deviation.abs().max()
    turning = ((deviation[1:-1] - deviation[:-2]) * (deviation[2:] - deviation[1:-1]) < 0).nonzero().flatten() + 1
    extrema = torch.cat([deviation[:1], deviation[turning], deviation[-1:]])
    torch.testing.assert_close(extrema, E * torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_no_other_quintic_is_nearer_to_one(index: int) -> None:
    (best,) = optimal_quintics(1, 0.03)
    for factor in (0.999, 1.001):
        other = tuple(value * (factor if i == index else 1) for i, value in enumerate(best))
        assert error([other], 0.03) > error([best], 0.03)


@pytest.mark.parametrize("safety", [1.0, 1.01])
def test_the_composition_converges_and_beats_the_fixed_triples(safety: float) -> None:
    errors = [error(optimal_quintics(steps, 1e-3, safety), 1e-3) for steps in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[4] < 0.125
    assert errors[5] < 2e-3
    assert errors[7] < 1e-12
    assert errors[4] < 0.5 * min(error(coefficients(m, 5), 1e-3) for m in ("newton_schulz", "newton_schulz_scheduled"))


def test_safety_keeps_a_singular_value_beyond_the_interval_from_running_away() -> None:
    beyond = torch.tensor([1.0039], dtype=torch.float64)  # one unit of bfloat16
    assert (follow(optimal_quintics(8, 1e-3, 1.01), beyond) - 1).abs() < 1e-6
    assert optimal_quintics(8, 1e-3, 1.01)[-1] == pytest.approx((15 / 8, -10 / 8, 3 / 8), rel=1e-3)


def test_polar_express_reaches_the_polar_factor() -> None:
    U, _, Vh = torch.linalg.svd(draw(12, 30), full_matrices=False)
    M = (U * torch.logspace(0, -2, 12, dtype=torch.float64)) @ Vh
    torch.testing.assert_close(orthogonalize(M, "polar_express", 9), U @ Vh, rtol=0, atol=1e-9)
    assert (orthogonalize(M, "newton_schulz", 9) - U @ Vh).norm() > 0.1


@pytest.mark.parametrize(
    ("method", "steps"), [*((method, 5) for method in POLYNOMIAL), ("newton_schulz", 12), ("polar_express", 12)]
)
def test_iterating_on_the_small_side_is_accurate_in_float32(method: str, steps: int) -> None:
    U, _, Vh = torch.linalg.svd(draw(24, 200), full_matrices=False)
    M = (U * torch.logspace(0, -4, 24, dtype=torch.float64)) @ Vh
    exact, found = orthogonalize(M, method, steps), orthogonalize(M.float(), method, steps).double()
    assert (found - exact).norm() / exact.norm() < 2e-4


# -- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_precision_says_what_to_compute_in(method: str) -> None:
    M = draw(6, 9)
    single = orthogonalize(M, method, precision="float32")
    assert single.dtype == torch.float64
    assert torch.equal(single, orthogonalize(M.float(), method).double())
    half = orthogonalize(M, method, precision="bfloat16")
    native = orthogonalize(M.bfloat16(), method)
    assert native.dtype == torch.bfloat16
    # There is no decomposition in half precision.
    expected = single if method == "svd" else native.double()
    assert torch.equal(half, expected)
    # Eight bits, and every step steep at 0: what is lost there grows.
    assert (half - single).norm() < 0.2 * single.norm()


def test_complex_matrices_have_single_and_double_precision_only() -> None:
    M = draw(4, 6, dtype=torch.complex128)
    found = orthogonalize(M, precision="float32")
    assert found.dtype == torch.complex128
    assert torch.equal(found, orthogonalize(M.to(torch.complex64)).to(torch.complex128))
    with pytest.raises(OptimizerError, match="no complex numbers in bfloat16; choose precision float32"):
        orthogonalize(M, precision="bfloat16")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_muon_computes_in_the_precision_it_is_told(method: str, precision: str) -> None:
    W, G = Parameter(draw(4, 6)), draw(4, 6, seed=1)
    W.grad = G.clone()
    before = W.detach().clone()
    Muon([W], lr=0.1, orthogonalization=method, precision=precision, momentum=0.0).step()
    assert W.dtype == torch.float64
    torch.testing.assert_close(W.detach(), before - 0.1 * orthogonalize(G, method, precision=precision))


# -- Muon's options ------------------------------------------------------------------------------------------


def test_decay_after_the_update_shrinks_the_update_too() -> None:
    W, G = Parameter(draw(4, 6)), draw(4, 6, seed=1)
    before, W.grad = W.detach().clone(), G.clone()
    Muon([W], lr=0.1, weight_decay=0.5, orthogonalization="svd", decay_after_update=True).step()
    torch.testing.assert_close(W.detach(), (1 - 0.1 * 0.5) * (before - 0.1 * orthogonalize(G, "svd")))


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        (
            {"orthogonalization": "polar_expres"},
            "Muon: Unknown orthogonalization 'polar_expres'; .* Did you mean 'polar_express'",
        ),
        ({"precision": "float16"}, "Muon: Unknown precision 'float16'; known are bfloat16, float32, parameter"),
        ({"orthogonalization": "newton_schulz_scheduled", "steps": 6}, "has 5 steps, not 6"),
        ({"decay_after_update": True, "decoupled": False}, "decay_after_update needs decoupled=true"),
    ],
)
def test_muon_refuses_what_does_not_go_together(hyperparameters: dict[str, object], words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        Muon([Parameter(torch.zeros(3, 3))], **hyperparameters)


def test_muon_refuses_complex_weights_in_bfloat16_before_the_first_step() -> None:
    with pytest.raises(OptimizerError, match="Muon: There are no complex numbers in bfloat16"):
        Muon([Parameter(torch.zeros(3, 3, dtype=torch.complex64))], precision="bfloat16")


# -- the table in the docs -----------------------------------------------------------------------------------


def test_the_documented_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    polar_table.main()
    printed = capsys.readouterr().out.strip().split("\n")
    text = (Path(optimizers.__path__[0]).parent / "docs" / "optimizers.md").read_text(encoding="utf-8")
    documented = text[text.index(printed[0]) :].split("\n\n")[0].strip().split("\n")
    number = re.compile(r"\d+\.\d+")
    assert [number.sub("#", row) for row in documented] == [number.sub("#", row) for row in printed]
    for row, other in zip(documented, printed, strict=True):
        # bfloat16 rounds differently from one machine to the next.
        assert [float(x) for x in number.findall(row)] == pytest.approx(
            [float(x) for x in number.findall(other)], abs=0.03
        )
