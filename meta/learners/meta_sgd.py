"""Meta-SGD (Li et al., "Meta-SGD: learning to learn quickly for few-shot learning", 2017)."""

from __future__ import annotations

from typing import Any

import torch

from polyshot.meta.learners.gradient import RATES, GradientLearner
from polyshot.meta.stacked import Weights


class MetaSGD(GradientLearner):
    """θ ← θ − α ∘ ∇L(θ), where α has the shape of θ and is meta-learnt with it."""

    def weights(self) -> Weights:
        weights = super().weights()
        return weights | {f"{RATES}{name}": torch.full_like(weights[name], self.rate) for name in self.adapted_names()}

    def update(self, weights: Weights, fast: Weights, gradients: Weights, step: int) -> Weights:
        del step
        return {name: value - weights[f"{RATES}{name}"] * gradients[name] for name, value in fast.items()}

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import meta_sgd

        return meta_sgd(self)
