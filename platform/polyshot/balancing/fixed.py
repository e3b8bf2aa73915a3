"""Fixed task weights on the simplex: L = Σ λ_t L_t with Σ λ_t = 1 (linear scalarisation).

Tuned fixed weights match or beat most adaptive methods (Kurin et al., "In Defense of the Unitary Scalarization for Deep
Multi-Task Learning", NeurIPS 2022), which makes them the reference for all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyshot.balancing.base import LossBalancer


class FixedWeights(LossBalancer):
    """Task losses [T] → their weighted sum []."""

    task_weights: Tensor

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        # Not in state_dict: a resumed run takes the weights from its study.
        self.register_buffer("task_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        return torch.dot(self.task_weights, losses)
