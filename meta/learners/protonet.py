"""Prototypical networks (Snell, Swersky & Zemel, NIPS 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyshot.meta.learners.base import Adapted
from polyshot.meta.learners.features import FeatureLearner
from polyshot.meta.stacked import Weights


class ProtoNet(FeatureLearner):
    """Logits are negative squared distances from the classes' mean features (eq. 2)."""

    def solve(self, weights: Weights, features: Tensor, labels: Tensor) -> Adapted:
        del weights
        ways = int(self.network.head.out_features)
        members = self.objective.targets(labels, ways).to(features.dtype)  # [T, K, W]
        # A class without rows has no mean; it is put where nothing is near it.
        counts = members.sum(1).unsqueeze(2)  # [T, W, 1]
        means = members.transpose(1, 2) @ features / counts.clamp(min=1)
        return {"prototypes": means, "missing": (counts == 0).squeeze(2)}

    def predict(self, weights: Weights, adapted: Adapted, features: Tensor) -> Tensor:
        del weights
        means = adapted["prototypes"]
        squares = features.square().sum(2, keepdim=True) + means.square().sum(2).unsqueeze(1)
        distances = torch.baddbmm(squares, features, means.transpose(1, 2), alpha=-2)  # [T, N, W]
        return (-distances).masked_fill(adapted["missing"].unsqueeze(1), -torch.inf)

    def linear(self, weights: Weights, adapted: Adapted) -> tuple[Tensor, Tensor]:
        # −|f − c|² is 2 c·f − |c|² and a term that all classes have in common.
        del weights
        means = adapted["prototypes"]
        return 2 * means, (-means.square().sum(2)).masked_fill(adapted["missing"], -torch.inf)

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import protonet

        return protonet(self)
