"""Uncertainty weighting: L = Σ c_t e^{−s_t} L_t + s_t / 2, where s_t = log σ_t² is learnt with the model.

Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics" (CVPR
2018), equations 5 to 10: c_t = 1/2 for a regression (a Gaussian likelihood) and 1 for a classification (a softmax at
temperature σ²).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyshot.balancing.base import LossBalancer


class Uncertainty(LossBalancer):
    """Losses [T] → their negative log likelihood [], up to constants. State: the parameter `log_variances` [T]."""

    _factors: Tensor

    def __init__(self, is_regression: Sequence[bool], loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self.log_variances = nn.Parameter(torch.zeros(len(is_regression)))
        factors = torch.tensor([0.5 if regression else 1.0 for regression in is_regression])
        self.register_buffer("_factors", factors, persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        terms = self._factors * torch.exp(-self.log_variances) * self.scaled(losses) + self.log_variances / 2
        return torch.where(losses == 0, 0, terms).sum()  # an absent task must not make its own σ shrink
