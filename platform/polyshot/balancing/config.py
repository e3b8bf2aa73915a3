"""ConFIG: the direction with prescribed cosines to all task gradients, as long as their projections on it together.

    u ∝ U⁺ p with the unit gradients U = diag(1/‖g_t‖) J and p the task weights (equal cosines for equal weights);
    d = (Σ_t g_t·u) u
Liu, Chu & Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks" (ICLR 2025), equation
2. As U⁺ = Uᵀ (U Uᵀ)⁺ and U Uᵀ holds the gradients' cosines, the Gramian is all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import correlations, least_norm_solution

_NOISE = 1e-6  # cosines come from float32 gradients


class ConFIG(GramianBalancer):
    """Gramian [T, T] → weights [T]. They are zero where the gradients leave no such direction (two opposite ones)."""

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        self._preference = np.array(weights)

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        cosines, norms = correlations(gramian)
        scaled = least_norm_solution(cosines, self._preference[tasks])
        projections = cosines @ scaled
        squared_length = scaled @ projections
        if squared_length <= _NOISE * (scaled @ scaled):
            return np.zeros_like(scaled)
        return scaled / norms * (norms @ projections) / squared_length
