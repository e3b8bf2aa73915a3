"""CAGrad: the direction near the average gradient g₀ that serves the worst-off task best.

    d = argmax min_t g_t·d  over ‖d − g₀‖ ≤ c ‖g₀‖
Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning" (NeurIPS 2021), equation 2. Its dual, d = g₀ +
c ‖g₀‖ g_w / ‖g_w‖ with w on the simplex, is what the authors solve by SLSQP. d is not rescaled by 1 / (1 + c²), which
some codes do and which the optimisers with adaptive rates do not feel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import worst_improvement_point


class CAGrad(GramianBalancer):
    """Gramian [T, T] → weights [T]: 1/T each for g₀, and those of the move away from it."""

    def __init__(self, c: float = 0.5, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._c = c

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return worst_improvement_point(gramian, np.full(len(gramian), 1 / len(gramian)), self._c)
