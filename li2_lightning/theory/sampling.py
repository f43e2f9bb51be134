"""How many random samples keep the Fourier features: the boundary of Theorem 4 (arXiv:2509.21519)."""

from __future__ import annotations

import math


def critical_fraction(order: int, max_irrep_dimension: int) -> float:
    """Fraction of the M² pairs at which test accuracy jumps from 0 to 1 in the source's experiments.

        p = 2.7482 · ln M / M · max(1, max_k d_k / 2)

    The theorem gives the scaling, n ≳ d_k² M log(M/δ); the factor 2.7482 is empirical, read off the
    experiments of Fig. 5, and no constant of the theory: where subsampled energy ascent keeps half of the
    Fourier features, n/(M ln M) drifts from 4.1 at M = 23 to 13.3 at M = 509, while the odds
    p/(1−p) · M/ln M settle near 16.

    Args:
        order: M, the number of group elements.
        max_irrep_dimension: largest dimension d_k of a complex irreducible representation.

    Returns:
        The fraction; it may exceed 1 for small or strongly non-Abelian groups.
    """
    return 2.7482 * math.log(order) / order * max(1.0, max_irrep_dimension / 2)
