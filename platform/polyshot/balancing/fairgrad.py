"""FairGrad: α-fair allocation of the update's help among tasks.

    w > 0 with G w = w^{−1/α}, which maximises Σ (g_t·d)^{1−α} / (1−α); α = 1 is proportional (Nash), α → ∞ max-min
    fairness
Ban & Ji, "Fair Resource Allocation in Multi-Task Learning" (ICML 2024), equation 4. The authors minimise its residual
by least squares; it is the minimum of a strictly convex function, and found exactly here. α = 0 is the plain average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import inverse_power_point


class FairGrad(GramianBalancer):
    """Gramian [T, T] → weights [T]."""

    def __init__(self, alpha: float = 2.0, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._alpha = alpha

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        if self._alpha == 0:
            return np.full(len(gramian), 1 / len(gramian))
        return inverse_power_point(gramian, 1 / self._alpha)
