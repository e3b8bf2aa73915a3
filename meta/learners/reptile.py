"""Reptile (Nichol, Achiam & Schulman, "On first-order meta-learning algorithms", 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Differentiate
from polyshot.meta.learners.gradient import GradientLearner
from polyshot.meta.stacked import Weights


class Reptile(GradientLearner):
    """The meta-gradient is (θ − θ') / α, averaged over tasks: away from where steps on all of a task's rows lead.

    Nothing is differentiated twice. The division by the inner step size α follows the paper's use with Adam.
    """

    first_order = True

    def loss(self, weights: Weights, episodes: Episodes, progress: Tensor, differentiate: Differentiate) -> Tensor:
        del progress
        rows = torch.cat([episodes.support, episodes.query], 1)
        labels = torch.cat([episodes.support_labels, episodes.query_labels], 1)
        reached = self.adapt(weights, rows, labels, self.steps, differentiate)[-1]
        # Half the squared distance, whose gradient at θ is θ − θ' when θ' is held fast.
        distances = [(weights[name] - value.detach()).square().flatten(1).sum(1) for name, value in reached.items()]
        return torch.stack(distances).sum(0).mean() / (2 * self.rate)

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import reptile

        return reptile(self)
