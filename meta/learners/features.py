"""What the learners that solve for a task's predictor share: meta-learnt features, and no steps."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Adapted, Differentiate, Learner
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import Objective
from polyshot.meta.stacked import StackedForward, Weights, stacked_forward


class FeatureLearner(Learner):
    """Features [T, N, F] by the network's body, then a solution in closed form."""

    def __init__(self, network: FewShotNetwork, objective: Objective):
        super().__init__(network, objective)
        self._body = stacked_forward(network.body, "body.")

    def weights(self) -> Weights:
        return {f"body.{name}": value.detach().clone() for name, value in self.network.body.named_parameters()}

    @property
    def forward_pass(self) -> StackedForward:
        return self._body

    def adapt(
        self, weights: Weights, support: Tensor, labels: Tensor, steps: int, differentiate: Differentiate
    ) -> list[Adapted]:
        del steps, differentiate
        return [self.solve(weights, self._body(weights, support), labels)]

    def outputs(self, weights: Weights, adapted: Adapted, inputs: Tensor) -> Tensor:
        return self.predict(weights, adapted, self._body(weights, inputs))

    def body(self, weights: Weights, adapted: Adapted) -> Weights:
        del adapted
        return {name.removeprefix("body."): value for name, value in weights.items() if name.startswith("body.")}

    def loss(self, weights: Weights, episodes: Episodes, progress: Tensor, differentiate: Differentiate) -> Tensor:
        del progress
        (solution,) = self.adapt(weights, episodes.support, episodes.support_labels, 0, differentiate)
        outputs = self.outputs(weights, solution, episodes.query)
        return self.objective.losses(outputs, episodes.query_labels, episodes.query_mask).mean()

    @abstractmethod
    def solve(self, weights: Weights, features: Tensor, labels: Tensor) -> Adapted:
        """The predictor that fits features [T, K, F] and labels [T, K]."""

    @abstractmethod
    def predict(self, weights: Weights, adapted: Adapted, features: Tensor) -> Tensor:
        """[T, N, F] → [T, N, O]."""
