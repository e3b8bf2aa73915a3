"""Smooth Tchebycheff scalarisation: L = μ log Σ exp(λ_t (L_t − z_t) / μ), a smooth maximum; the ideal point z is 0.

Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization" (ICML 2024), equation 6. Unlike a
weighted sum it can reach every point of a front that is not convex. λ are the task weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyshot.balancing.base import LossBalancer


class SmoothTchebycheff(LossBalancer):
    """Losses [T] → []."""

    preference: Tensor

    def __init__(self, weights: Sequence[float], mu: float = 0.1):
        super().__init__()
        self._mu = mu
        self.register_buffer("preference", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        return self._mu * torch.logsumexp(self.preference * losses / self._mu, 0)
