"""Geometric loss strategy: L = Π L_t^{λ_t} with Σ λ_t = 1, the (weighted) geometric mean of the losses.

Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning"
(CVPR workshops 2019), equation 2; equal exponents are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyshot.balancing.base import LossBalancer


class GeometricMean(LossBalancer):
    """Losses [T] → their geometric mean []."""

    exponents: Tensor

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        self.register_buffer("exponents", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        absent = losses == 0
        exponents = torch.where(absent, 0, self.exponents)
        # Logarithms, as the product of many losses leaves the range of float32.
        mean = torch.dot(exponents, torch.where(absent, 1, losses).log()) / exponents.sum().clamp(min=1e-12)
        return torch.where(absent.all(), losses.sum(), mean.exp())
