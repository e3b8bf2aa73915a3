"""PCGrad: each task's gradient loses its component along every other task's gradient that it conflicts with.

For each i, over the others j in random order:  g_i ← g_i − (g_i·g_j / ‖g_j‖²) g_j  where g_i·g_j < 0;  then Σ g_i.
Yu et al., "Gradient Surgery for Multi-Task Learning" (NeurIPS 2020), algorithm 1. The changed gradients stay
combinations of the old ones, so that their coefficients and the Gramian are all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from polyshot.balancing.base import Draws, GramianBalancer


class PCGrad(GramianBalancer):
    """Gramian [T, T] → weights [T]. State: the number of draws."""

    def __init__(self, seed: int, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._draws = Draws(seed)

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        orders = random_orders(len(tasks), self._draws)
        squared_norms = gramian.diagonal().tolist()
        weights = np.ones(len(tasks))
        for task, order in enumerate(orders):
            products = gramian[task]  # of the changed g_task with all g_j
            if (products >= 0).all():
                continue
            for other in order:
                if other != task and products[other] < 0:
                    share = float(products[other]) / squared_norms[other]
                    weights[other] -= share
                    products = products - share * gramian[other]
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        return {"draws": self._draws.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._draws.count = state["draws"]


def random_orders(tasks: int, draws: Draws) -> list[list[int]]:
    """For each task an order of all tasks, each equally likely: [T][T]."""
    return torch.rand(tasks, tasks, generator=draws.next()).argsort(1).tolist()
