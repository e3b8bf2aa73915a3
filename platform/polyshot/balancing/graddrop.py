"""GradDrop: in each coordinate the tasks' gradients of one sign only, drawn by how much that sign prevails.

    P = ½ (1 + Σ_t J_t / Σ_t |J_t|), U ~ uniform(0, 1);  d = Σ_t J_t (1[P > U] 1[J_t > 0] + 1[P < U] 1[J_t < 0])
Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout" (NeurIPS 2020), algorithm 1
with f the identity and no leak. The paper applies it at the shared features (`at: features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyshot.balancing.base import Draws, JacobianBalancer


class GradDrop(JacobianBalancer):
    """Jacobian [T, P] → [P]. State: the number of draws."""

    def __init__(self, seed: int, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._draws = Draws(seed)

    def aggregate(self, jacobian: Tensor) -> Tensor:
        positive, negative = jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0)  # [P] each
        # P > U is Σ J⁺ > U Σ|J|, with no division by the zero of a coordinate that no task reaches.
        threshold = torch.rand(
            positive.shape, dtype=positive.dtype, device=positive.device, generator=self._draws.next(positive.device)
        ) * (positive - negative)
        return torch.where(positive > threshold, positive, negative)

    def get_extra_state(self) -> dict[str, Any]:
        return {"draws": self._draws.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._draws.count = state["draws"]
