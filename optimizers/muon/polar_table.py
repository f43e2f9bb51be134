"""How far each orthogonalization is from the polar factor: ``python -m optimizers.muon.polar_table`` prints the table.

The matrix is 142 × 256 (the two operands of addition modulo 71, and 256 nodes), with random singular vectors and with
singular values from 1 to 1e-4, evenly spaced in the logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.muon.orthogonalize import Method, Precision, orthogonalize

ROWS, COLUMNS, SMALLEST = 142, 256, 1e-4
CASES: tuple[tuple[Method, int], ...] = (
    ("svd", 1),
    ("newton_schulz", 5),
    ("newton_schulz", 10),
    ("newton_schulz_scheduled", 5),
    ("polar_express", 5),
    ("polar_express", 10),
)
HEADER = """| orthogonalization | steps | precision | distance | cosine | singular values |
|---|---|---|---|---|---|"""


def hard_matrix(seed: int = 0) -> tuple[Tensor, Tensor]:
    """The matrix and its polar factor UVᵀ, in float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(noise, full_matrices=False)
    values = torch.logspace(0, torch.tensor(SMALLEST).log10().item(), ROWS, dtype=torch.float64)
    return (U * values) @ Vh, U @ Vh


def measure(matrix: Tensor, polar: Tensor, method: Method, steps: int, precision: Precision) -> dict[str, float]:
    """‖O − UVᵀ‖_F/‖UVᵀ‖_F, cos(O, UVᵀ), and the smallest and largest singular value of O, for ``matrix`` → O."""
    found = orthogonalize(matrix, method, steps, precision=precision)
    singular_values = torch.linalg.svdvals(found)
    return {
        "distance": ((found - polar).norm() / polar.norm()).item(),
        "cosine": ((found * polar).sum() / (found.norm() * polar.norm())).item(),
        "smallest": singular_values.min().item(),
        "largest": singular_values.max().item(),
    }


def main() -> None:
    """Print the table as Markdown."""
    matrix, polar = hard_matrix()
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    print(HEADER)
    for method, steps in CASES:
        # There is no decomposition in bfloat16; svd would show the same row twice.
        for precision in precisions[:1] if method == "svd" else precisions:
            m = measure(matrix, polar, method, steps, precision)
            print(
                f"| {method} | {'' if method == 'svd' else steps} | {precision} | {m['distance']:.3f} | "
                f"{m['cosine']:.3f} | {m['smallest']:.3f} to {m['largest']:.3f} |"
            )


if __name__ == "__main__":
    main()
