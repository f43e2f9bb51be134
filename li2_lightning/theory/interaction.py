"""Which stage G_F is in, from cosines that are computed without forming G_F; and the interaction between nodes.

Source: arXiv:2509.21519, sections 3.2 and 3.4. The tests that need no η, and the formulas with small matrices, are this
project's own. For complex features every transpose is a conjugate transpose, and signs and cosines are those of real
parts.

At the ridge readout G_F = P_η ỸỸᵀF̃B exactly, with B = (F̃ᵀF̃+ηI)⁻¹ and P_η = η(F̃F̃ᵀ+ηI)⁻¹. While both are near
multiples of the identity, G_F has the **independent form** ỸỸᵀF̃: every node follows the gradient of its own energy. A
readout at a ridge equilibrium, whatever its η, satisfies F̃ᵀR = ηV. Then G_F = RVᵀ has the **coupled form** RRᵀF̃/η: the
residual of all nodes together drives each of them (Theorem 7).

With A = ỸᵀF̃ (C×K) and Q = F̃ᴴR (K×C) every norm and inner product below is one of K×C matrices with a metric of
C×C, so that a cosine of G_F costs O((n+K)C²) beyond A and Q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from li2_lightning.networks.activations import Activation
from li2_lightning.networks.matmul import product
from li2_lightning.theory.energy import column_norms, energy_of_weights
from li2_lightning.theory.lazy import center

BLOCK = 256
"""Rows of a Gram matrix that are computed at a time; the half that symmetry gives is left out."""

SHORTEST = 1e-12
"""A centred feature with a smaller norm is constant up to rounding."""


@dataclass(frozen=True)
class GradientStructure:
    """Scalars that describe G_F, (…); a cosine is NaN where one of its two matrices is zero.

    Attributes:
        norm: ‖G_F‖.
        independence: cos(G_F, ỸỸᵀF̃); 1 = every node learns independently of the others.
        coupling: cos(G_F, RRᵀF̃); 1 = the residual drives the nodes together.
        residual_alignment: cos(R, Ỹ); 1 where P_η ∝ I.
        readout_alignment: cos(V, F̃ᵀỸ); 1 where B ∝ I.
        readout_equilibrium: cos(V, F̃ᵀR); 1 = V is at a ridge equilibrium.
        effective_ridge: η̂ = ‖F̃ᵀR‖/‖V‖, the η of that equilibrium.
    """

    norm: Tensor
    independence: Tensor
    coupling: Tensor
    residual_alignment: Tensor
    readout_alignment: Tensor
    readout_equilibrium: Tensor
    effective_ridge: Tensor


@dataclass(frozen=True)
class GradientGrams:
    """Sums over samples; real, …×C×C each except the counts.

    Attributes:
        residual: RᵀR.
        counts: n_c, the number of samples of each class (…, C); ỸᵀỸ = diag(n_c) − n_c n_cᵀ/n.
        residual_target: RᵀỸ.
    """

    residual: Tensor
    counts: Tensor
    residual_target: Tensor


def gradient_structure(
    target_features: Tensor, residual_features: Tensor, readout: Tensor, grams: GradientGrams
) -> GradientStructure:
    """The structure of G_F = RVᴴ.

    Args:
        target_features: A = ỸᵀF̃, …×C×K.
        residual_features: Q = F̃ᴴR, …×K×C.
        readout: V, …×K×C, with Ŷ = Re(FV).
        grams: RᵀR, class counts and RᵀỸ.
    """
    A, Q, V, counts = target_features, residual_features, readout, grams.counts
    # ‖ỸA‖² and ‖Ỹ‖²; no product of A with itself is needed.
    rows, total = torch.linalg.vector_norm(A, dim=-1).to(counts.dtype), counts.sum(dim=-1)
    sums = torch.linalg.vector_norm(counts.to(A.dtype).unsqueeze(-2) @ A, dim=(-2, -1)).to(counts.dtype)
    independent = (torch.linalg.vecdot(counts, rows.square()) - sums.square() / total).clamp_min(0).sqrt()
    target_norm = (total - counts.square().sum(dim=-1) / total).clamp_min(0).sqrt()
    # ⟨RVᴴ, RQᴴ⟩ = ⟨V·RᵀR, Q⟩: the samples enter only through the C×C matrix RᵀR.
    metric = grams.residual.to(V.dtype)
    V_measured, Q_measured = product(V, metric), product(Q, metric)
    norm = inner(V_measured, V).to(counts.dtype).clamp_min(0).sqrt()
    coupled = inner(Q_measured, Q).to(counts.dtype).clamp_min(0).sqrt()
    residual_norm = _trace(grams.residual).sqrt()
    readout_norm, driving_norm, target_feature_norm = (torch.linalg.vector_norm(x, dim=(-2, -1)) for x in (V, Q, A))
    AV = product(A, V).real.to(counts.dtype)
    return GradientStructure(
        norm=norm,
        # ⟨RVᴴ, ỸA⟩ = tr(RᵀỸ·AV)
        independence=ratio(inner(AV, grams.residual_target.mT), norm * independent),
        coupling=ratio(inner(V_measured, Q), norm * coupled),
        residual_alignment=ratio(_trace(grams.residual_target), residual_norm * target_norm),
        readout_alignment=ratio(_trace(AV), readout_norm * target_feature_norm),
        readout_equilibrium=ratio(inner(V, Q), readout_norm * driving_norm),
        effective_ridge=ratio(driving_norm, readout_norm),
    )


def node_coupling(readout: Tensor, residual_gram: Tensor, pairs: Tensor) -> Tensor:
    """Median |cos| of pairs of columns of G_F.

    Column j of G_F is R v̄_j with v_j the j-th row of V, so the inner product of columns j and l is v_l RᵀR v_jᴴ,
    exactly.

    Args:
        readout: V, …×K×C.
        residual_gram: RᵀR, …×C×C.
        pairs: node indices, P×2.
    """
    left, right = readout[..., pairs[:, 0], :], readout[..., pairs[:, 1], :]
    weighted_left, weighted_right = (side @ residual_gram.to(side.dtype) for side in (left, right))
    product = (weighted_left * right.conj()).sum(dim=-1).abs()
    norms = [(weighted * side.conj()).sum(dim=-1).real.clamp_min(0).sqrt()
             for weighted, side in ((weighted_left, left), (weighted_right, right))]  # fmt: skip
    return ratio(product, norms[0] * norms[1]).nanmedian(dim=-1).values


def node_interaction(features: Tensor, ridge: float) -> Tensor:
    """B = (F̃ᴴF̃+ηI)⁻¹, …×K×K, in float64 (complex128). In float32 up to 28 % of the off-diagonal signs are wrong.

    For n < K by Woodbury's identity, B = (I − F̃ᴴ(F̃F̃ᴴ+ηI)⁻¹F̃)/η.

    Args:
        features: F, …×n×K; centred here.
        ridge: η > 0.

    Source: arXiv:2509.21519, section 3.4: G_F at the ridge readout is P_η ỸỸᵀF̃B.
    """
    K = features.shape[-1]
    eye = torch.eye(K, dtype=torch.promote_types(features.dtype, torch.float64), device=features.device)
    return _interaction_columns(features, ridge, eye.expand(*features.shape[:-2], K, K))


def repulsion_entry(features: Tensor, ridge: float, j: int, l: int) -> Tensor:  # noqa: E741
    """b_jl = −c/(ab − |c|²), a scalar: Theorem 6, without forming B.

    c = f̃_jᴴPf̃_l, a = f̃_jᴴPf̃_j + η, b = f̃_lᴴPf̃_l + η, with P = η(F̃'F̃'ᴴ+ηI)⁻¹ and F̃' all other columns. So
    two nodes repel each other if they are similar in the part that the other nodes do not explain (c > 0).

    Args:
        features: F, n×K; centred here.
        ridge: η > 0.
        j, l: two different nodes.

    Source: arXiv:2509.21519, Theorem 6.
    """
    F = center(features.to(torch.promote_types(features.dtype, torch.float64)))
    keep = torch.ones(F.shape[1], dtype=torch.bool, device=F.device)
    keep[[j, l]] = False
    two, others = F[:, [j, l]], F[:, keep]
    shifted = others @ others.mH / ridge + torch.eye(len(F), dtype=F.dtype, device=F.device)
    gram = two.mH @ torch.linalg.solve(shifted, two)
    a, b, c = gram[0, 0] + ridge, gram[1, 1] + ridge, gram[0, 1]
    entry: Tensor = -c / (a * b - c * c.conj())
    return entry


def repulsion(features: Tensor, ridge: Tensor | float, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the pairs with b_jl < 0, and strength −mean of b_jl/√(b_jj b_ll).

    Both are NaN if there is no pair, and if η is not positive or too small for a Cholesky factor.

    Args:
        features: F̃, centred, n×K, in float64, since float32 gets the sign of a small b_jl wrong.
        ridge: η.
        pairs: node indices, P×2, as from `most_similar_pairs`.

    Returns:
        Two scalars. The strength is between −1 and 1: since B is the inverse of F̃ᴴF̃+ηI, it is the mean partial
        correlation of the two nodes given all others.
    """
    nodes, place = torch.unique(pairs, return_inverse=True)
    B = interaction_block(features, ridge, nodes)
    diagonal = B.diagonal().real if B.is_complex() else B.diagonal()
    left, right = place[:, 0], place[:, 1]
    entries = B[left, right].real if B.is_complex() else B[left, right]
    strength = -(entries / (diagonal[left] * diagonal[right]).sqrt()).mean()
    share = (entries < 0).to(strength.dtype).mean()
    return torch.where(strength.isfinite(), share, torch.nan), strength


def interaction_block(features: Tensor, ridge: Tensor | float, nodes: Tensor) -> Tensor:
    """B_SS = (F̃ᴴF̃+ηI)⁻¹ restricted to the rows and columns of S nodes, S×S.

    It takes one Cholesky factor L of size min(n, K) and S triangular solves: with K ≤ n, LLᴴ = F̃ᴴF̃+ηI and Z = L⁻¹E_S
    give B_SS = ZᴴZ; else LLᴴ = F̃F̃ᴴ+ηI and Z = L⁻¹F̃_S give (I − ZᴴZ)/η (Woodbury). The result is NaN if η ≤ 0 or L
    does not exist.

    Args:
        features: F̃, n×K.
        ridge: η.
        nodes: S column indices.
    """
    F = features
    n, K = F.shape
    eta = torch.as_tensor(ridge, dtype=F.real.dtype if F.is_complex() else F.dtype, device=F.device)
    if n >= K:
        unit = torch.zeros(K, len(nodes), dtype=F.dtype, device=F.device)
        unit[nodes, torch.arange(len(nodes), device=F.device)] = 1
        Z = _solve_half(F.mH, eta, unit)
        block = Z.mH @ Z
    else:
        Z = _solve_half(F, eta, F[:, nodes])
        block = (torch.eye(len(nodes), dtype=F.dtype, device=F.device) - Z.mH @ Z) / eta
    return torch.where(eta > 0, block, torch.nan)


def most_similar_pairs(features: Tensor, count: int) -> Tensor:
    """The ``count`` pairs j < l with the largest positive cosine of f̃_j and f̃_l, P×2, most similar first.

    All K(K−1)/2 cosines are computed in float32 (about nK² operations), so the order of pairs whose cosines differ by
    less than 1e-7 is arbitrary. P < ``count`` if fewer cosines are positive; a constant node is in no pair.

    Args:
        features: F̃, centred, n×K.
    """
    K = features.shape[1]
    single = features.to(torch.complex64 if features.is_complex() else torch.float32)
    directions = (single / column_norms(single).clamp_min(SHORTEST)).mT.contiguous()
    if directions.is_complex():
        # The real part of a complex inner product is a real inner product of twice the length.
        directions = torch.view_as_real(directions).flatten(1)
    cosines = torch.zeros(0, dtype=torch.float32, device=features.device)
    pairs = torch.zeros(0, dtype=torch.int64, device=features.device)  # each as the number j·K + l
    for start in range(0, K, BLOCK):
        block = product(directions[start : start + BLOCK], directions[start:].mT)
        # Entries below the diagonal repeat a pair; as zeros they are dropped with the cosines that are not positive.
        found, place = block.triu(1).flatten().topk(min(count, block.numel()))
        left, right = start + place // (K - start), start + place % (K - start)
        cosines, pairs = torch.cat([cosines, found]), torch.cat([pairs, left * K + right])
        cosines, kept = cosines.topk(min(count, len(cosines)))
        pairs = pairs[kept]
    pairs = pairs[cosines > 0]
    return torch.stack([pairs // K, pairs % K], dim=1)


def top_down_energy(weights: Tensor, inputs: Tensor, residual: Tensor, activation: Activation) -> Tensor:
    """E_S(w) = ½‖(Ỹ − Ŷ)ᵀσ(Xw)‖², (…, K): the energy of a new node beside the existing ones (Theorem 7).

    If the features span the irreps S and η → 0, R is Ỹ projected on the missing irreps. Then, on all pairs of a group
    and with σ = x², the maxima of E_S lie in the missing irreps only, with the E* = M/(2d_R) of Theorem 2.

    Args:
        weights: …×d×K.
        inputs: X, n×d.
        residual: R = P₁⊥(Y − Ŷ), n×C.
        activation: σ.

    Source: arXiv:2509.21519, Theorem 7.
    """
    return energy_of_weights(weights, inputs, residual, activation)


def new_node_gradient(node: Tensor, features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """−∂J*/∂f, n×m: what drives a new node f beside the features F_S, at the ridge readout of all nodes.

    g = [QQᵀf̃ − (f̃ᴴQQᵀf̃/α)Pf̃]/α with P = η(F̃_SF̃_Sᴴ+ηI)⁻¹, Q = PỸ, α = f̃ᴴPf̃ + η, where J* = min_V J of Eq. 1.
    Only for ‖f̃‖² ≪ η it equals QQᵀf̃/η, the gradient of E_S divided by η.

    Args:
        node: f, n×m, for m new nodes, each considered alone; centred here.
        features: F_S, n×K; centred here.
        targets: Y, n×C; centred here.
        ridge: η > 0.

    Source: arXiv:2509.21519, Theorem 7, which gives the direction for small f.
    """
    F, Y, f = center(features), center(targets).to(features.dtype), center(node)
    shifted = F @ F.mH / ridge + torch.eye(len(F), dtype=F.dtype, device=F.device)
    Q, Pf = torch.linalg.solve(shifted, torch.cat([Y, f], dim=1)).split([Y.shape[1], f.shape[1]], dim=1)
    alpha = (f.conj() * Pf).sum(dim=0).real + ridge
    driven = Q @ (Q.mH @ f)
    gradient: Tensor = (driven - (f.conj() * driven).sum(dim=0) / alpha * Pf) / alpha
    return gradient


def _interaction_columns(features: Tensor, ridge: float, units: Tensor) -> Tensor:
    """(F̃ᴴF̃+ηI)⁻¹ units; the system that is factored has size min(n, K)."""
    F = center(features.to(units.dtype))
    n, K = F.shape[-2:]
    gram = F.mH @ F if n >= K else F @ F.mH
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    factor = torch.linalg.cholesky(gram)
    if n >= K:
        return torch.cholesky_solve(units, factor)
    return (units - F.mH @ torch.cholesky_solve(F @ units, factor)) / ridge


def _solve_half(rows: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """L⁻¹ right, for the Cholesky factor L of rows·rowsᴴ + ηI; NaN if L does not exist."""
    size = len(rows)
    # Cholesky reads the lower half only.
    gram = rows.new_empty(size, size)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        gram[start:stop, :stop] = rows[start:stop] @ rows[:stop].mH
    gram.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(gram)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.where(info == 0, solved, torch.nan)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Re⟨left, right⟩ of matrices, (…)."""
    total: Tensor = (left * right.conj()).sum(dim=(-2, -1)).real
    return total


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; NaN where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator, torch.nan)
