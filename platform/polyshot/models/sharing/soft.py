"""Soft parameter sharing: one encoder per task, tied by an L2 penalty between their parameters.

Duong et al., "Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural Network Parser" (ACL 2015);
for many tasks at once in the form of Evgeniou & Pontil, "Regularized Multi-Task Learning" (KDD 2004), which draws
towards the mean: Ω(θ) = strength · 1/T Σ_t ‖θ_t − θ̄‖² = strength · 1/(2T²) Σ_s Σ_t ‖θ_s − θ_t‖².
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.stacking import Rows


class SoftSharing(SharingScheme):
    """[B, F] → [T, B, H].

    The encoders start from the same weights: networks that were drawn apart compute like things in different units, and
    the distance between their parameters would say nothing. The more strength, the closer this is to hard sharing.
    """

    def __init__(self, encoders: EncoderFactory, tasks: int, strength: float):
        super().__init__()
        self.encoders = encoders.stacked_alike(tasks)
        self.outputs = encoders.outputs
        self._strength = strength

    def forward(self, features: Tensor) -> Tensor:
        return self.encoders(features, shared=True)

    def penalty(self) -> Tensor:
        # Tensor.var would say it shorter and takes seven times as long.
        distances = [(theta - theta.mean(0)).square().sum() for theta in self.encoders.by_copy()]
        return self._strength / self.encoders.copies * torch.stack(distances).sum()

    def encoder_state(self, task: int) -> dict[str, Tensor]:
        return self.encoders.state_of(task)

    def own(self, task: int) -> Iterator[Rows]:
        return self.encoders.rows(task)
