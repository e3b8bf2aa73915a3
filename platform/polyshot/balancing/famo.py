"""FAMO: all losses decrease at the same relative rate, learnt from the losses alone.

Liu et al., "FAMO: Fast Adaptive Multitask Optimization" (NeurIPS 2023), algorithm 1. With z = softmax(ξ),
    L = c Σ z_t log L_t,  c = 1 / Σ (z_t / L_t),
and after the step ξ descends z(ξ)ᵀδ, δ_t = log L_t(before) − log L_t(after), by Adam with weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyshot.balancing.base import LossBalancer

_SMALLEST = 1e-8  # added to losses under a logarithm, as in the authors' code
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's


class FAMO(LossBalancer):
    """Losses [T] → []. State: `logits` ξ [T] and Adam's moments [T] of them."""

    wants_losses_after_step = True
    logits: Tensor
    first_moment: Tensor
    second_moment: Tensor

    def __init__(
        self,
        tasks: int,
        learning_rate: float = 0.025,
        weight_decay: float = 1e-3,
        loss_scales: Sequence[float] | None = None,
    ):
        super().__init__(loss_scales)
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._before: Tensor | None = None
        self._steps = 0
        for name in ("logits", "first_moment", "second_moment"):
            self.register_buffer(name, torch.zeros(tasks))

    def forward(self, losses: Tensor) -> Tensor:
        self._before = losses.detach()
        weights = torch.where(losses == 0, 0, torch.softmax(self.logits, 0).to(losses.dtype))
        positive = self.scaled(losses) + _SMALLEST
        normaliser = (weights / positive).sum().detach().clamp(min=_SMALLEST)
        return torch.dot(weights, positive.log()) / normaliser

    def after_step(self, losses: Tensor) -> None:
        assert self._before is not None, "forward comes first"
        delta = (self._before + _SMALLEST).log() - (losses.detach() + _SMALLEST).log()
        delta = torch.where(self._before == 0, 0, delta)
        if not delta.isfinite().all():
            return
        weights = torch.softmax(self.logits, 0)
        gradient = weights * (delta - torch.dot(weights, delta)) + self._weight_decay * self.logits
        self._steps += 1
        self.first_moment.lerp_(gradient, 1 - _BETAS[0])
        self.second_moment.lerp_(gradient.square(), 1 - _BETAS[1])
        size = self._learning_rate / (1 - _BETAS[0] ** self._steps)
        root = math.sqrt(1 - _BETAS[1] ** self._steps)
        self.logits.sub_(size * self.first_moment / (self.second_moment.sqrt() / root + _EPSILON))

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
