"""MGDA: the shortest vector in the convex hull of the task gradients, a common descent direction unless it is zero.

    w = argmin ‖Σ w_t g_t‖²  over w ≥ 0, Σ w_t = 1
Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization" (C. R. Math. 2012); Sener &
Koltun, "Multi-Task Learning as Multi-Objective Optimization" (NeurIPS 2018), equation 3, who solve it by Frank-Wolfe.
Here it is solved exactly. A task with small gradients gets a large weight; `normalise` divides the gradients first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import minimum_norm_point


class MGDA(GramianBalancer):
    """Gramian [T, T] → the weights [T] of the shortest convex combination."""

    def __init__(self, normalise: Literal["none", "norm", "loss"] = "none", loss_scales: Sequence[float] | None = None):
        """`normalise`: what each gradient is divided by; `loss` is of Sener & Koltun's code."""
        super().__init__(loss_scales)
        self._normalise = normalise

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        match self._normalise:
            case "none":
                return minimum_norm_point(gramian)
            case "norm":
                divisors = np.sqrt(gramian.diagonal())
            case _:
                divisors = np.where(losses > 0, losses, 1.0)
        return minimum_norm_point(gramian / np.outer(divisors, divisors)) / divisors
