"""Random loss weighting: L = Σ w_t L_t with w = softmax(z) and z ~ N(0, I), drawn anew for every batch.

Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning" (TMLR 2022),
algorithm 2: a method that does not beat it has not balanced anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyshot.balancing.base import Draws, LossBalancer


class RandomWeights(LossBalancer):
    """Losses [T] → a random convex combination [] of them. State: the number of draws."""

    def __init__(self, seed: int, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._draws = Draws(seed)

    def forward(self, losses: Tensor) -> Tensor:
        logits = torch.randn(len(losses), generator=self._draws.next()).to(losses)
        return torch.dot(torch.softmax(logits, 0), self.scaled(losses))

    def get_extra_state(self) -> dict[str, Any]:
        return {"draws": self._draws.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._draws.count = state["draws"]
