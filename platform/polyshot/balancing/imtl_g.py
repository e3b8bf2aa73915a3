"""IMTL-G: the direction whose projections on all task gradients are equal.

    Jᵀw with g_t·Jᵀw / ‖g_t‖ the same for all t and Σ w_t = 1, so that  w = G⁻¹ n / Σ G⁻¹ n  with n_t = ‖g_t‖
Liu et al., "Towards Impartial Multi-Task Learning" (ICLR 2021), equation 6. Weights may be negative. Where gradients
depend on each other the solution of least norm is taken, in units of the gradients' own norms.
"""

from __future__ import annotations

import numpy as np

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import correlations, least_norm_solution


class IMTLG(GramianBalancer):
    """Gramian [T, T] → weights [T]. They are zero when no direction has equal projections and weights of sum 1."""

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        cosines, norms = correlations(gramian)
        weights = least_norm_solution(cosines, np.ones_like(norms)) / norms
        total = weights.sum()
        return weights / total if abs(total) > 1e-12 * np.abs(weights).sum() else np.zeros_like(weights)
