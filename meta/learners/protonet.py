"""Prototypical networks (Snell, Swersky & Zemel, NIPS 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyshot.meta.learners.base import Adapted
from polyshot.meta.learners.features import FeatureLearner
from polyshot.meta.stacked import Weights

_UNSEEN = 10.0  # nats by which a class without rows of support is less likely than its distance says


class ProtoNet(FeatureLearner):
    """Logits are negative squared distances from the classes' mean features (eq. 2)."""

    def solve(self, weights: Weights, features: Tensor, labels: Tensor) -> Adapted:
        del weights
        ways = int(self.network.head.out_features)
        members = self.objective.targets(labels, ways).to(features.dtype)  # [T, K, W]
        counts = members.sum(1).unsqueeze(2)  # [T, W, 1]
        means = members.transpose(1, 2) @ features / counts.clamp(min=1)
        # A class without rows (a group may have some only) stands at the mean of all, and is told to be unlikely.
        means = torch.where(counts > 0, means, features.mean(1, keepdim=True))
        return {"prototypes": means, "handicap": _UNSEEN * (counts == 0).squeeze(2).to(features.dtype)}

    def predict(self, weights: Weights, adapted: Adapted, features: Tensor) -> Tensor:
        del weights
        means = adapted["prototypes"]
        squares = features.square().sum(2, keepdim=True) + means.square().sum(2).unsqueeze(1)
        distances = torch.baddbmm(squares, features, means.transpose(1, 2), alpha=-2)  # [T, N, W]
        return -distances - adapted["handicap"].unsqueeze(1)

    def linear(self, weights: Weights, adapted: Adapted) -> tuple[Tensor, Tensor]:
        # −|f − c|² is 2 c·f − |c|² and a term that all classes have in common.
        del weights
        means = adapted["prototypes"]
        return 2 * means, -means.square().sum(2) - adapted["handicap"]

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import protonet

        return protonet(self)
