"""Dynamic weight average: L = Σ w_t L_t, w = T softmax(r / τ), r_t = L_t(e−1) / L_t(e−2) for epochs e.

Liu, Johns & Davison, "End-to-End Multi-Task Learning with Attention" (CVPR 2019), equation 7: tasks whose loss falls
slowly weigh more. The first two epochs have equal weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyshot.balancing.base import LossBalancer


class DWA(LossBalancer):
    """Losses [T] → []. State: the buffer `weights` [T], and `previous` [T], the last epoch's losses (NaN before)."""

    weights: Tensor
    previous: Tensor

    def __init__(self, tasks: int, temperature: float = 2.0, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._temperature = temperature
        self.register_buffer("weights", torch.ones(tasks))
        self.register_buffer("previous", torch.full((tasks,), torch.nan))

    def forward(self, losses: Tensor) -> Tensor:
        return torch.dot(self.weights.to(losses.dtype), self.scaled(losses))

    def end_epoch(self, losses: Tensor) -> None:
        rates = losses.detach() / self.previous
        if rates.isfinite().all():
            self.weights = len(losses) * torch.softmax(rates / self._temperature, 0)
        self.previous = losses.detach().clone()
