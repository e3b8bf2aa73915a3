"""DualProj: the (weighted) average gradient, projected on the cone of directions that harm no task.

    d = argmin ‖d − Σ p_t g_t‖ over {d : J d ≥ 0},  p the task weights
Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning" (NeurIPS 2017), equation 11; called DualProj in
Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import dual_cone_projections


class DualProj(GramianBalancer):
    """Gramian [T, T] → weights [T]."""

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        self._preference = np.array(weights)

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return dual_cone_projections(gramian, self._preference[tasks][None])[0]
