"""IMTL-L: L = Σ e^{s_t} L_t − s_t with learnt s_t, which makes all scaled losses e^{s_t} L_t tend to 1.

Liu et al., "Towards Impartial Multi-Task Learning" (ICLR 2021), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyshot.balancing.base import LossBalancer


class IMTLL(LossBalancer):
    """Losses [T] → []. State: the parameter `log_scales` [T]."""

    def __init__(self, tasks: int, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self.log_scales = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses: Tensor) -> Tensor:
        terms = torch.exp(self.log_scales) * self.scaled(losses) - self.log_scales
        return torch.where(losses == 0, 0, terms).sum()  # an absent task must not make its own scale grow
