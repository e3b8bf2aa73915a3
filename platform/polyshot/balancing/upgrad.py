"""UPGrad: each task's gradient is projected on the cone of directions that harm no task, then they are summed.

    d = Σ_t p_t π(g_t),  π(g) = argmin ‖d − g‖ over {d : J d ≥ 0},  p the task weights (uniform: 1/T each)
Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization" (2024), equation 4. No task's loss rises to first
order, and d is linear in the scale of each gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import dual_cone_projections


class UPGrad(GramianBalancer):
    """Gramian [T, T] → weights [T]."""

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        self._preference = np.array(weights)

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return dual_cone_projections(gramian, np.diag(self._preference[tasks])).sum(0)
