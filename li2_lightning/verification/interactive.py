"""Checks of stage III: memorization, repulsion, missing features, and Muon (Theorems 5 to 8)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from li2_lightning import groups
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import character_table, isotypic_blocks
from li2_lightning.networks.activations import ACTIVATIONS, find_activation
from li2_lightning.theory.energy import (
    ascend,
    block_shares,
    classify_limits,
    energy_gradient,
    group_energy_gradient,
    predicted_maxima,
)
from li2_lightning.theory.features import block_norms, output_block_norms
from li2_lightning.theory.interaction import new_node_gradient, node_interaction, repulsion_entry, top_down_energy
from li2_lightning.theory.lazy import center, ridge_readout
from li2_lightning.theory.memorization import (
    focused_maximizer,
    memorization_energy,
    memorization_gradient,
    spreading_maximizer,
)
from li2_lightning.theory.muon import (
    collect_in_turn,
    collection_probabilities,
    independent_collection_time,
    muon_collection_time,
    orthogonal_maxima,
    polar_factor,
    shrink_factor,
    simulate_blocking,
    simulate_collection,
)
from li2_lightning.theory.reconstruction import (
    both_signs,
    pair_features,
)
from li2_lightning.verification.findings import (
    Finding,
    all_pairs,
    distance,
    draw,
    within,
)
from li2_lightning.verification.groups import GROUPS


def theorem_5(quick: bool) -> Iterator[Finding]:
    """Theorem 5: ascent of the memorization energy ends at the focused or the spreading maximum."""
    group = groups.symmetric(3)
    partners = torch.tensor(group.table[group.inverses, 4])
    p = torch.tensor([0.1, 0.25, 0.05, 0.3, 0.18, 0.12], dtype=torch.float64)
    for name in ("square", "relu", "silu", "tanh", "sigmoid"):
        activation = ACTIVATIONS[name]

        def climb(w: Tensor, name: str = name) -> tuple[Tensor, Tensor]:
            sigma = ACTIVATIONS[name]
            return memorization_energy(w, p, partners, sigma), memorization_gradient(w, p, partners, sigma)

        ascent = ascend(draw(12, 20).abs(), climb, max_steps=5000)
        focus = name == "square"
        expected = focused_maximizer(p, partners) if focus else spreading_maximizer(p, partners, activation)
        error = (ascent.weights - expected[:, None]).norm(dim=0).max()
        kind = "focused" if focus else "spreading"
        yield within(f"{name}: {kind} memorization", "20 ascents from positive starts", error, 1e-6)


def theorem_6(quick: bool) -> Iterator[Finding]:
    """Theorem 6: the entries of B, and G_F = P_η ỸỸᵀF̃B at the ridge readout."""
    for n, K in ((12, 30), (30, 12)):
        F, Y, ridge = draw(n, K), draw(n, 4, seed=1), 0.3
        B = node_interaction(F, ridge)
        pairs = list(combinations(range(6), 2))
        error = max(float((repulsion_entry(F, ridge, *pair) - B[pair]).abs() / B.abs().max()) for pair in pairs)
        yield within(
            f"b_jl = −c/(ab−c²), n = {n}, K = {K}", "entries of the inverse against leaving j, l out", error, 1e-10
        )
        V = ridge_readout(center(F), center(Y), ridge)
        moved = F.clone().requires_grad_()
        J = 0.5 * center(Y - moved @ V).square().sum()
        G = -torch.autograd.grad(J, moved)[0]
        P = ridge * torch.linalg.inv(center(F) @ center(F).mT + ridge * torch.eye(n, dtype=F.dtype))
        form = P @ center(Y) @ center(Y).mT @ center(F) @ B
        yield within(f"G_F = P_η ỸỸᵀF̃B, n = {n}, K = {K}", "autograd at the ridge readout", distance(G, form), 1e-10)


def theorem_7(quick: bool) -> Iterator[Finding]:
    """Theorem 7: the gradient of a new node, and that it grows features of the missing irreps."""
    F, Y, ridge = draw(20, 8), draw(20, 4, seed=1), 0.4
    f = draw(20, 1, seed=2).requires_grad_()
    everything, targets = center(torch.cat([F, f], dim=1)), center(Y)
    kernel = everything @ everything.mT + ridge * torch.eye(20, dtype=F.dtype)
    J = ridge / 2 * (targets * torch.linalg.solve(kernel, targets)).sum()
    (gradient,) = torch.autograd.grad(J, f)
    g = new_node_gradient(f.detach(), F, Y, ridge)
    yield within("gradient of a new node", "autograd of min_V J", distance(-g, gradient), 1e-9)
    R = targets - center(F) @ ridge_readout(center(F), targets, ridge)
    for size, low, high in ((1e-4, 0.0, 1e-4), (1.0, 0.5, 10.0)):
        small = size * f.detach()
        top_down = R @ (R.mT @ center(small)) / ridge
        error = distance(new_node_gradient(small, F, Y, ridge), top_down)
        yield Finding("correction: it is that of E_S only for ‖f‖² ≪ η", f"distance at ‖f‖ = {small.norm():.1g}",
                      f"{low:g} to {high:g}", f"{error:.1e}", low <= error <= high)  # fmt: skip
    for name in ("Z7", "S3") if quick else ("Z7", "S3", "S4"):
        yield from _top_down(name, GROUPS[name]())
    yield from _characters_of_products(GROUPS["S3"]())


def _characters_of_products(group: FiniteGroup) -> Iterator[Finding]:
    """Check the identity of characters in the source's proof of Theorem 7, and the one that every dimension has."""
    table, inverses = group.table, group.inverses
    conjugates = table[table, inverses[:, None]]  # gbg⁻¹, by g and b
    printed: dict[int, float] = {}
    averaged = 0.0
    for irrep in character_table(group):
        d, chi = irrep.dimension, irrep.character
        product = chi.conj()[:, None] * chi
        printed[d] = max(printed.get(d, 0.0), float(abs(chi[table[inverses]] - product).max()))
        mean = chi[table[inverses[:, None, None], conjugates]].mean(axis=1)
        averaged = max(averaged, float(abs(d * mean - product).max()))
    yield Finding("correction: χ(a⁻¹b) = χ̄(a)χ(b) holds for d = 1 only", "S3, largest difference by dimension",
                  "d=1 0; d=2 2", "; ".join(f"d={d} {round(printed[d], 9):g}" for d in sorted(printed)),
                  printed[1] < 1e-9 and abs(printed[2] - 2) < 1e-9)  # fmt: skip
    yield within("the mean of χ(a⁻¹gbg⁻¹) over g is χ̄(a)χ(b)/d", "S3, every a and b", averaged, 1e-9)


def _top_down(name: str, group: FiniteGroup) -> Iterator[Finding]:
    """Check that with half of the blocks spanned only the others have R, a new node's gradient and maxima of E_S."""
    blocks = isotypic_blocks(group)[1:]
    spanned = range((len(blocks) + 1) // 2)
    units = []
    for number in spanned:
        projector, many = torch.tensor(blocks[number].projector), blocks[number].rank ** 2
        u, v = projector @ draw(group.order, many), projector @ draw(group.order, many, seed=1)
        units.append(both_signs(u, v))
    X, Y = all_pairs(group)
    F = center(pair_features(torch.cat(units, dim=1)))
    V = torch.linalg.lstsq(F, Y, driver="gelsd").solution
    R = Y - F @ V
    norms = block_norms(R.mT @ R, V, F.mT @ R, group)
    covered = torch.tensor([number in spanned for number in range(len(blocks))])
    whole = output_block_norms(Y, group)
    outside = (norms.residual - torch.where(covered, 0.0, whole)).abs().max() / whole.sum()
    driven = norms.gradient[~covered].sum() / (norms.residual.sum() * V.square().sum())
    error = torch.stack([outside, driven]).max()
    yield within(f"{name}: R is Ỹ in the missing irreps, where no node in place has a gradient",
                 "parts of R and G_F by block", error, 1e-10)  # fmt: skip
    square = find_activation("square")
    w, ridge = 1e-4 * draw(2 * group.order, 20, seed=4), 1e-7
    shares = []
    for features in (F, F[:, :0]):
        driven = new_node_gradient(square(X @ w), features, Y, ridge)
        gradient = X.mT @ (square.derivative(X @ w) * driven)
        shares.append(block_shares(gradient, group)[: len(spanned)].sum(dim=0))
    yield Finding(
        f"{name}: a new node's gradient lies in the missing irreps",
        f"share in the {len(spanned)} spanned, 20 nodes: most; mean if they were not",
        "< 1e-06; > 0.05",
        f"{float(shares[0].max()):.0e}; {float(shares[1].mean()):.2f}",
        float(shares[0].max()) < 1e-6 and float(shares[1].mean()) > 0.05,
    )

    def climb(w: Tensor) -> tuple[Tensor, Tensor]:
        return top_down_energy(w, X, R, square), energy_gradient(w, X, R, square)

    ascent = ascend(draw(2 * group.order, 40, seed=3), climb, tolerance=1e-9)
    purity, block = block_shares(ascent.weights, group).max(dim=0)
    missing = set(range(len(blocks))) - set(spanned)
    error = (ascent.energies / predicted_maxima(group)[block] - 1).abs().max()
    wanted, found = (", ".join(blocks[i].label for i in sorted(which)) for which in (missing, set(block.tolist())))
    passed = wanted == found and float(error) < 1e-8 and bool((purity > 1 - 1e-8).all())
    statement = f"{name}: E_S has maxima in the missing irreps alone"
    yield Finding(statement, "40 ascents: blocks, E*", wanted, found, passed)


def theorem_8(quick: bool) -> Iterator[Finding]:
    """Theorem 8: collection times with and without Muon, drawn and by ascent in turn, the factor κ, and Lemma 2."""
    p, trials = collection_probabilities(torch.linspace(1, 2, 8, dtype=torch.float64), 1), 4000 if quick else 40000
    sums = [(-1) ** (size + 1) / float(p[list(subset)].sum()) for size in range(1, 9)
            for subset in combinations(range(8), size)]  # fmt: skip
    T = float(independent_collection_time(p))
    yield Finding("T₀ by quadrature", "inclusion and exclusion, L = 8", f"{sum(sums):.8f}", f"{T:.8f}",
                  abs(T - sum(sums)) < 1e-7)  # fmt: skip
    equal = float(independent_collection_time(torch.full((11,), 1 / 11, dtype=torch.float64)))
    harmonic = sum(1 / k for k in range(1, 12))
    yield Finding("correction: T₀ ≥ LΣ1/l, with equality for equal p", f"quadrature, L = 11; printed {harmonic:.4f}",
                  f"{11 * harmonic:.8f}", f"{equal:.8f}", abs(equal - 11 * harmonic) < 1e-7)  # fmt: skip
    for shrink in (1.0, 0.5, 0.1):
        times = simulate_collection(p, shrink, trials, torch.Generator().manual_seed(0)).double()
        T, error = float(muon_collection_time(p, shrink)), float(times.std()) / trials**0.5
        yield Finding(f"T = κT₀ + (1−κ)L, κ = {shrink:g}", f"{trials} collections node by node, ± 4 standard errors",
                      f"{T:.4f}", f"{float(times.mean()):.4f} ± {4 * error:.4f}",
                      abs(float(times.mean()) - T) < 4 * error)  # fmt: skip
    frame = torch.linalg.qr(draw(12, 2)).Q
    for new, found, nodes in ((1.0, 1.0, 1), (0.3, 2.0, 4)):
        gradient = torch.cat([found * frame[:, :1].expand(-1, nodes), 0.7 * frame[:, :1] + new * frame[:, 1:]], dim=1)
        U, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
        column = (U[:, :2] @ Vh[:2])[:, -1]
        kappa = float((frame[:, 0] @ column) / (frame[:, 1] @ column)) * new / 0.7
        expected = shrink_factor(new, found, nodes)
        yield Finding(f"correction: κ = β/(β+c√m), m = {nodes}, c/β = {found / new:.2g}",
                      "singular value decomposition; the paper has ½", f"{expected:.6f}", f"{kappa:.6f}",
                      abs(kappa - expected) < 1e-9)  # fmt: skip
    G = draw(50, 9, 5)
    error = ((polar_factor(G) * G).sum(dim=(-2, -1)) / torch.linalg.matrix_norm(G, "nuc") - 1).abs().max()
    yield within("Lemma 2: ⟨UVᵀ, G⟩ = tr D ≥ 0", "50 matrices against the nuclear norm", error, 1e-12)
    if quick:
        yield from _in_turn("Z2xZ2", groups.product("2x2"), collections=96)
        return
    for name in ("Z2xZ4", "Z23", "S4"):
        yield from _in_turn(name, GROUPS[name](), collections=256)
    yield from _in_turn("Z2^4", groups.product("2x2x2x2"), collections=256)


def _in_turn(name: str, group: FiniteGroup, collections: int) -> Iterator[Finding]:
    """Check the nodes that find every irrep of a group: ascents in turn against draws by the shares of other ascents.

    The tolerance is 4 standard errors and 10 %: the shares have an error of some percent, and after a few nodes the
    starts of an irrep no longer lead to it in proportion to the maxima that are left.
    """
    starts = draw(2 * group.order, 12 * collections, seed=7)
    limits = ascend(starts, lambda w: group_energy_gradient(w, group), tolerance=1e-3).weights
    maxima = orthogonal_maxima(group)
    p = torch.bincount(classify_limits(limits, group).block, minlength=len(maxima)).double() / len(limits.mT)
    independent = float(independent_collection_time(p))
    blocking = simulate_blocking(p, maxima, 20000, torch.Generator().manual_seed(0)).double()
    of_a_half = float(muon_collection_time(p, 0.5))

    def measured(shrink: float) -> tuple[float, float]:
        times = collect_in_turn(group, shrink, collections, torch.Generator().manual_seed(0)).double()
        return float(times.mean()), 4 * float(times.std()) / collections**0.5

    for what, shrink, expected in (
        ("independent nodes: T₀", 1.0, independent),
        ("orthogonal gradients: a node blocks one of its irrep's orthogonal maxima", 0.0, float(blocking.mean())),
    ):
        mean, error = measured(shrink)
        yield Finding(
            f"{name}, {what}",
            f"nodes that find {len(maxima)} irreps, {collections} collections by ascent in turn, ± 4 standard errors",
            f"{expected:.2f} ± 10 %" + ("" if shrink else f", below T₀ = {independent:.2f}"),
            f"{mean:.2f} ± {error:.2f}",
            abs(mean - expected) < error + 0.1 * expected and (shrink == 1 or mean + error < independent),
        )
    mean, error = measured(0.5)
    if group.is_abelian:
        yield Finding(
            f"{name}, half of the pull along earlier gradients: T = (T₀+L)/2", "the same with κ = ½",
            f"{of_a_half:.2f} ± 10 %", f"{mean:.2f} ± {error:.2f}", abs(mean - of_a_half) < error + 0.1 * of_a_half,
        )  # fmt: skip
    else:
        yield Finding(
            f"correction: {name}, T = (T₀+L)/2 takes an irrep for a single maximum", "the same with κ = ½",
            f"> {of_a_half:.2f}", f"{mean:.2f} ± {error:.2f}", mean - error > of_a_half,
        )  # fmt: skip
