"""MAML (Finn, Abbeel & Levine, "Model-agnostic meta-learning", ICML 2017), with refinements of MAML++.

Antoniou, Edwards & Storkey, "How to train your MAML" (ICLR 2019): a learnt step size for every step and layer (LSLR),
and the loss after every step counted (MSL). Their annealed outer rate is `meta.schedule`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Differentiate
from polyshot.meta.learners.gradient import RATES, GradientLearner
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import Objective
from polyshot.meta.stacked import Weights

# The share of meta-training over which the losses after the steps before the last lose their weight.
_ANNEALED = 0.5


class MAML(GradientLearner):
    """θ ← θ − α ∇L(θ) on the support rows, differentiated through."""

    def __init__(
        self,
        network: FewShotNetwork,
        objective: Objective,
        *,
        rate: float,
        steps: int,
        per_step_rates: bool = False,
        multi_step_loss: bool = False,
    ):
        super().__init__(network, objective, rate=rate, steps=steps)
        self._per_step_rates = per_step_rates
        self._multi_step_loss = multi_step_loss

    def weights(self) -> Weights:
        weights = super().weights()
        if self._per_step_rates:
            like = next(iter(weights.values()))
            weights |= {f"{RATES}{name}": like.new_full((self.steps,), self.rate) for name in self.adapted_names()}
        return weights

    def update(self, weights: Weights, fast: Weights, gradients: Weights, step: int) -> Weights:
        if not self._per_step_rates:
            return super().update(weights, fast, gradients, step)
        step = min(step, self.steps - 1)  # adapted for longer than trained: the last step's
        return {name: value - weights[f"{RATES}{name}"][step] * gradients[name] for name, value in fast.items()}

    def loss(self, weights: Weights, episodes: Episodes, progress: Tensor, differentiate: Differentiate) -> Tensor:
        if not self._multi_step_loss or self.steps == 1:
            return super().loss(weights, episodes, progress, differentiate)
        trajectory = self.adapt(weights, episodes.support, episodes.support_labels, self.steps, differentiate)
        losses = [self.query_losses(weights, adapted, episodes).mean() for adapted in trajectory[1:]]
        # Equal shares at first; those of the earlier steps then fall to zero, and the last step's rises to one.
        early = (1 - progress / _ANNEALED).clamp(min=0) / self.steps
        return torch.stack(losses[:-1]).sum() * early + losses[-1] * (1 - (self.steps - 1) * early)

    def reference(self) -> Any:
        if self._per_step_rates or self._multi_step_loss:
            return None
        from polyshot.meta.engines.learn2learn import maml

        return maml(self)
