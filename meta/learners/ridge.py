"""R2D2: a ridge-regression head on meta-learnt features (Bertinetto et al., "Meta-learning with differentiable
closed-form solvers", ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from polyshot.meta.learners.base import Adapted
from polyshot.meta.learners.features import FeatureLearner
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import CrossEntropy, Objective
from polyshot.meta.stacked import Weights

PENALTY, SCALE, SHIFT = "ridge.log_penalty", "ridge.scale", "ridge.shift"


class Ridge(FeatureLearner):
    """W = Xᵀ (X Xᵀ + λ I)⁻¹ Y (eq. 4), where a constant feature gives the intercept; outputs are a X W + b (eq. 6).

    λ is meta-learnt, and for classification a and b, which make logits of what was fitted to 0 and 1.
    """

    def __init__(self, network: FewShotNetwork, objective: Objective, *, penalty: float):
        super().__init__(network, objective)
        self._penalty = penalty

    def weights(self) -> Weights:
        weights = super().weights()
        like = self.network.head.weight.detach()
        own = {PENALTY: like.new_tensor([self._penalty]).log()}
        if isinstance(self.objective, CrossEntropy):
            own |= {SCALE: like.new_ones(1), SHIFT: like.new_zeros(1)}
        return weights | own

    def solve(self, weights: Weights, features: Tensor, labels: Tensor) -> Adapted:
        features = _with_constant(features)
        targets = self.objective.targets(labels, int(self.network.head.out_features)).to(features.dtype)
        gram = features @ features.transpose(1, 2)  # [T, K, K]
        penalties = weights[PENALTY].exp() * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return {"solution": features.transpose(1, 2) @ torch.linalg.solve(gram + penalties, targets)}

    def linear(self, weights: Weights, adapted: Adapted) -> tuple[Tensor, Tensor]:
        solution = adapted["solution"].transpose(1, 2)  # [T, O, F + 1]
        weight, bias = solution[..., :-1], solution[..., -1]
        return (weight * weights[SCALE], bias * weights[SCALE] + weights[SHIFT]) if SCALE in weights else (weight, bias)

    def predict(self, weights: Weights, adapted: Adapted, features: Tensor) -> Tensor:
        fitted = _with_constant(features) @ adapted["solution"]
        return fitted * weights[SCALE] + weights[SHIFT] if SCALE in weights else fitted


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(*features.shape[:2], 1)], 2)
