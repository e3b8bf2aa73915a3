"""DANN: mixed training with features from which an adversary cannot tell the source's rows from the target's.

Ganin et al., "Domain-Adversarial Training of Neural Networks" (JMLR 2016). The adversary descends its cross-entropy,
and by reversed gradients the encoder ascends it; their factor rises over the epochs as in the paper, to
2 / (1 + exp(−10 p)) − 1 with the share p of the epochs that are over.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.study.transfer import DANN
from polyshot.transfer.mixing import Alignment, mixed
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


def reverse_gradient(features: Tensor, factor: float) -> Tensor:
    """The features themselves; gradients that come back to them are multiplied by −factor."""
    return _Reversal.apply(features, factor)


class Adversary(Alignment):
    """The adversary's cross-entropy; `factor` is that of the reversed gradients."""

    def __init__(self, source: Tensor, target: Tensor, inputs: int, settings: DANN, epochs: int):
        super().__init__(source, target, settings.strength)
        self.network = nn.Sequential(nn.Linear(inputs, settings.width), nn.ReLU(), nn.Linear(settings.width, 1))
        self._epochs = epochs
        self.factor = 0.0

    def begin_epoch(self, number: int) -> None:
        self.factor = 2 / (1 + math.exp(-10 * (number - 1) / self._epochs)) - 1

    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        logits = self.network(reverse_gradient(torch.cat([source, target]), self.factor))[:, 0]
        domain = torch.cat([logits.new_zeros(len(source)), logits.new_ones(len(target))])
        return F.binary_cross_entropy_with_logits(logits, domain)


def prepare(settings: DANN, problem: Problem) -> Start:
    epochs = problem.study.training.epochs
    return mixed(
        problem,
        settings,
        terms=lambda source, target, width: [Adversary(source, target, width, settings, epochs)],
    )
