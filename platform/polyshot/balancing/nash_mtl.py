"""Nash-MTL: the bargaining solution among tasks, whose utility is how much the shared update helps them.

    α > 0 with G α = 1/α (elementwise), which maximises Σ log g_t·d over directions d of bounded length
Navon et al., "Multi-Task Learning as a Bargaining Game" (ICML 2022), claim 3.1. As in the authors' code, G is divided
by its Frobenius norm first, the update's norm is at most `max_norm`, and weights may be kept for `every` steps. They
approximate α by a sequence of conic programs; it is the minimum of the strictly convex ½ αᵀGα − Σ log α_t, and found
exactly here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.solvers import inverse_power_point


class NashMTL(GramianBalancer):
    """Gramian [T, T] → weights [T]. State: the number of steps and the weights in use [T]."""

    def __init__(
        self, tasks: int, max_norm: float | None = 1.0, every: int = 1, loss_scales: Sequence[float] | None = None
    ):
        super().__init__(loss_scales)
        self._max_norm = max_norm
        self._every = every
        self._steps = 0
        self._bargain = np.zeros(tasks)

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        bargain = self._bargain[tasks]
        # A task whose gradient was zero when the others bargained has no weight yet: they meet again.
        if self._steps % self._every == 0 or not bargain.all():
            bargain = inverse_power_point(gramian / np.linalg.norm(gramian), 1.0)
            self._bargain[tasks] = bargain
        self._steps += 1
        if self._max_norm is None:
            return bargain
        return bargain * min(1.0, self._max_norm / np.sqrt(max(bargain @ gramian @ bargain, 1e-300)))

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self._steps, "bargain": torch.from_numpy(self._bargain.copy())}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        self._bargain = state["bargain"].cpu().numpy().copy()
