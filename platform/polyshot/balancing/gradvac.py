"""Gradient vaccine: pairs of gradients are brought to the cosine that is usual for them, and not only out of conflict.

For each i, over the others j in random order, with φ = cos(g_i, g_j) below its running mean φ̂:
    g_i ← g_i + ‖g_i‖ (φ̂ √(1−φ²) − φ √(1−φ̂²)) / (‖g_j‖ √(1−φ̂²)) · g_j;   φ̂ ← (1−β) φ̂ + β φ;  then Σ g_i.
Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models"
(ICLR 2021), algorithm 1, for the parameters as one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch

from polyshot.balancing.base import Draws, GramianBalancer
from polyshot.balancing.pcgrad import random_orders


class GradVac(GramianBalancer):
    """Gramian [T, T] → weights [T]. State: `usual` [T, T], the running means φ̂, and the number of draws."""

    def __init__(self, tasks: int, seed: int, beta: float = 0.5, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._beta = beta
        self._draws = Draws(seed)
        self.usual = np.zeros((tasks, tasks))

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        norms = np.sqrt(gramian.diagonal()).tolist()
        rows = gramian.tolist()
        usual = self.usual[np.ix_(tasks, tasks)].tolist()
        weights = np.ones(len(tasks))
        for task, order in enumerate(random_orders(len(tasks), self._draws)):
            products, norm = rows[task], norms[task]  # of the changed g_task, with all g_j and of itself
            for other in order:
                if other == task:
                    continue
                cosine = max(-1.0, min(1.0, products[other] / (norm * norms[other]))) if norm > 0 else 0.0
                target = usual[task][other]
                usual[task][other] = (1 - self._beta) * target + self._beta * cosine
                root = sqrt(max(0.0, 1 - target * target))
                if cosine < target and root > 0:
                    share = norm * (target * sqrt(1 - cosine * cosine) - cosine * root) / (norms[other] * root)
                    weights[other] += share
                    squared = norm * norm + 2 * share * products[other] + (share * norms[other]) ** 2
                    products = [product + share * row for product, row in zip(products, rows[other], strict=True)]
                    norm = sqrt(max(0.0, squared))
        self.usual[np.ix_(tasks, tasks)] = usual
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        return {"draws": self._draws.count, "usual": torch.from_numpy(self.usual.copy())}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._draws.count = state["draws"]
        self.usual = state["usual"].cpu().numpy().copy()
