"""Stage I, lazy learning: the backpropagated gradient G_F, ridge readouts, and how close the features are to random.

Source: arXiv:2509.21519, section 3.1 (Prop. 1, Lemma 1, Eq. 1). Shapes: features F n×K, targets Y n×C, readout V K×C.
For complex F every transpose on features is a conjugate transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor


def center(rows: Tensor) -> Tensor:
    """P₁⊥ applied: subtract the mean over samples (…×n×anything)."""
    return rows - rows.mean(dim=-2, keepdim=True)


def backpropagated_gradient(residual: Tensor, readout: Tensor) -> Tensor:
    """G_F = −∂J/∂F = R Vᴴ, …×n×K, R = P₁⊥(Y − FV), for J = ½‖R‖² + (η/2)‖V‖² (Eq. 1; section 3.1).

    The loss `projected_mse` is the first term of J times 2/n; there G_F = −(n/2)·∂L/∂F.
    """
    return residual.to(readout.dtype) @ readout.mH


def ridge_readout(features: Tensor, targets: Tensor, ridge: float | Tensor) -> Tensor:
    """V* = (FᴴF + ηI)⁻¹FᴴY, …×K×C, with F and Y as they are given (center both for Eq. 1).

    It is solved in float64, by FᴴF + ηI for K ≤ n and else by V* = Fᴴ(FFᴴ + ηI)⁻¹Y. The result has the dtype of
    ``features``.

    Args:
        ridge: η > 0; (…, 1) where it differs between leading indices. With a loss averaged over samples and coupled
            weight decay λ, η = nλ/2.
    """
    wide = torch.promote_types(features.dtype, torch.float64)
    F, Y = features.to(wide), targets.to(wide)
    n, K = F.shape[-2:]
    if n >= K:
        solution = solve_shifted(F.mH @ F, F.mH @ Y, ridge)
    else:
        solution = F.mH @ solve_shifted(F @ F.mH, Y, ridge)
    return solution.to(features.dtype)


def solve_shifted(gram: Tensor, right: Tensor, ridge: float | Tensor) -> Tensor:
    """(gram + ridge·I)⁻¹ right by Cholesky, …×K×C; ``gram`` (…×K×K, Hermitian) is overwritten."""
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


def off_diagonal_sum(values: Tensor) -> Tensor:
    """Σ_{j≠l} v_jl of a whole matrix, (…) from …×K×K."""
    return values.sum(dim=(-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def draw_nodes(weights: Tensor, order: Tensor, count: int) -> Tensor:
    """Nodes drawn in proportion to ``weights`` by systematic sampling, …×count; a heavy node may come several times.

    The nodes are intervals in ``order``, each as long as its weight, and S equally spaced points choose the nodes. With
    the same order in every row the sample follows the weights smoothly instead of jumping from row to row.

    Args:
        weights: positive, …×K; one draw for each leading index.
        order: a permutation of the nodes (K,), drawn once.
        count: S.
    """
    reached = weights[..., order].cumsum(dim=-1)
    points = (torch.arange(count, device=weights.device) + 0.5) / count * reached[..., -1:]
    return order[torch.searchsorted(reached, points).clamp_max(len(order) - 1)]


def estimated_off_diagonal_sum(values: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
    """Σ_{j≠l} v_jl over all K nodes, estimated from the S×S values of nodes drawn in proportion to ``weights``.

    The estimate is the mean of v_jl/(w_j w_l) over pairs of different nodes, times Σ_{j≠l} w_j w_l. Its variance is 0
    if v_jl is w_j w_l times a constant. So for |f̃_jᴴf̃_l| = ‖f̃_j‖‖f̃_l‖|cos| the weights are the norms ‖f̃_j‖, and
    for |f̃_jᴴf̃_l|² the squares of the norms.

    Args:
        values: …×S×S; overwritten.
        nodes: the nodes of the S rows and columns, from `draw_nodes`, …×S.
        weights: w, …×K; the result has their dtype.
    """
    inverse = weights.gather(-1, nodes).reciprocal()
    same = nodes[..., :, None] == nodes[..., None, :]
    by_row = values.masked_fill_(same, 0.0) @ inverse.to(values.dtype)[..., None]
    ratios = by_row.squeeze(-1).mul(inverse).sum(dim=-1)
    pairs = weights.sum(dim=-1).square() - weights.square().sum(dim=-1)
    return ratios / (nodes.shape[-1] ** 2 - same.sum(dim=(-2, -1))) * pairs


def gram_deviation(off_diagonal: Tensor, norms: Tensor) -> Tensor:
    """Mean |off-diagonal entry| of F̃ᴴF̃ over its mean diagonal entry (Lemma 1: near 0 for wide random features).

    Args:
        off_diagonal: Σ_{j≠l} |f̃_jᴴf̃_l|, (…).
        norms: ‖f̃_j‖² of every node (…, K).
    """
    return off_diagonal / (norms.shape[-1] - 1) / norms.sum(dim=-1)


def kernel_deviation(off_diagonal: Tensor, norms: Tensor, mean: Tensor, spread: Tensor, n: int) -> Tensor:
    """min over a, b of ‖FFᴴ − aI − b11ᵀ‖ / ‖FFᴴ‖ (Lemma 1; Fig. 3 of the source).

    With P = P₁⊥ and J = 11ᵀ/n the two matrices span {P, J}, whose norms are √(n−1) and 1, so that with
    μ = Fᵀ1/n the squared distance is ‖F̃F̃ᴴ‖² − ‖F̃‖⁴/(n−1) + 2n‖F̃μ̄‖², and ‖FFᴴ‖² adds ‖F̃‖⁴/(n−1) + n²‖μ‖⁴.
    Nothing of size n×n is formed: ‖F̃F̃ᴴ‖ = ‖F̃ᴴF̃‖.

    Args:
        off_diagonal: Σ_{j≠l} |f̃_jᴴf̃_l|², (…).
        norms: ‖f̃_j‖² of every node (…, K).
        mean: μ (…, K).
        spread: ‖F̃μ̄‖², (…).
        n: samples.
    """
    total = norms.sum(dim=-1)
    centered = off_diagonal + norms.square().sum(dim=-1)
    within = total.square() / (n - 1)
    distance = (centered - within + 2 * n * spread).clamp_min(0)
    whole = distance + within + (n * mean.abs().square().sum(dim=-1)).square()
    return (distance / whole).sqrt()


def lazy_limit(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """G_F(∞) = η(F̃F̃ᴴ+ηI)⁻¹ ỸỸᵀF̃ (F̃ᴴF̃+ηI)⁻¹, …×n×K: G_F after the readout has converged (Prop. 1).

    It is computed in float64 as R Vᴴ = ηZ(ZᴴF̃) with Z = (F̃F̃ᴴ+ηI)⁻¹Ỹ, one solve with C right-hand sides; for K < n V*
    is solved first, and R = Ỹ − F̃V*. With n < K the distance of G_F(t) to the limit decays like e^(−ηt), so a numerical
    check needs ηt ≥ 30.

    Args:
        features, targets: F (…×n×K) and Y (…×n×C); both are centred here.
        ridge: η > 0. With output scale β it is η/β² (the scaled readout βV has that ridge).

    Source: arXiv:2509.21519, Prop. 1; its Eq. 68–69 state the scale for the error times Vᵀ, one factor β less.
    """
    wide = torch.promote_types(features.dtype, torch.float64)
    F, Y = center(features.to(wide)), center(targets.to(wide))
    if F.shape[-2] <= F.shape[-1]:
        Z = solve_shifted(F @ F.mH, Y, ridge)
        limit = ridge * Z @ (Z.mH @ F)
    else:
        V = solve_shifted(F.mH @ F, F.mH @ Y, ridge)
        limit = (Y - F @ V) @ V.mH
    return limit.to(features.dtype)


def early_gradient(features: Tensor, targets: Tensor, time: float, output_scale: float = 1.0) -> Tensor:
    """G_F(t) = β²t·ỸỸᵀF̃ + O(t²), …×n×K, while V(0) = 0 grows by gradient flow on Eq. 1 (section 3.1).

    With V(0) ~ N(0, α²) there is a further error O(α).

    Args:
        features, targets: F (…×n×K) and Y (…×n×C); both are centred here.
        time: t of the flow V̇ = −∂J/∂V.
        output_scale: β, for Ŷ = βFV.
    """
    F, Y = center(features), center(targets).to(features.dtype)
    return output_scale**2 * time * Y @ (Y.mH @ F)


def readout_flow(
    features: Tensor, targets: Tensor, ridge: float, time: float, start: Tensor, output_scale: float = 1.0
) -> Tensor:
    """V(t) of the gradient flow V̇ = βF̃ᴴ(Ỹ − βF̃V) − ηV at fixed features, …×K×C, in closed form.

    V(t) = V∞ + e^(−(β²F̃ᴴF̃+ηI)t)(V(0) − V∞) with V∞ = β(β²F̃ᴴF̃+ηI)⁻¹F̃ᴴỸ, by an eigendecomposition of the K×K side.

    Args:
        features, targets: F (…×n×K) and Y (…×n×C); both are centred here.
        ridge: η > 0.
        time: t.
        start: V(0), …×K×C.
        output_scale: β, for Ŷ = βFV.
    """
    F, Y = center(features), center(targets).to(features.dtype)
    values, vectors = torch.linalg.eigh(output_scale**2 * F.mH @ F)
    rates = (values.clamp_min(0) + ridge)[..., None]
    limit = vectors.mH @ (output_scale * F.mH @ Y) / rates
    flow: Tensor = vectors @ (limit + torch.exp(-rates * time) * (vectors.mH @ start - limit))
    return flow
