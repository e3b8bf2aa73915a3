"""The inner loop that MAML and its relatives share: gradient steps on the support rows, from meta-learnt weights.

Each of them is a file beside this one that says which weights are adapted, and what a step makes of a gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from polyshot.meta.episodes.base import Episodes
from polyshot.meta.inserts import is_insert, with_inserts
from polyshot.meta.learners.base import Adapted, Differentiate, Learner
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import Objective
from polyshot.meta.stacked import StackedForward, Weights, stacked_forward

RATES = "rates."  # the names of meta-learnt step sizes


class GradientLearner(Learner):
    """Adapts by `steps` steps of size `rate` (the α of the papers).

    Attributes:
        first_order: whether the meta-gradient leaves out the derivatives of the inner gradients.
        head_only: whether the whole body stays as it is within a task.
        head_factor: what a gradient is multiplied by for the head. The mean over the rows of N classes moves each one's
            weights by 1/N of what its own rows ask for: this keeps steps as large in tasks of other N.
    """

    first_order: bool = False
    head_factor: float = 1.0

    def __init__(
        self,
        network: FewShotNetwork,
        objective: Objective,
        *,
        rate: float,
        steps: int,
        adapts: Literal["all", "head", "adapters", "lora"] = "all",
        rank: int = 4,
        zero_head: bool = False,
    ):
        """
        Args:
            adapts: beside the head. What is not adapted is meta-learnt, and the same for all tasks.
            zero_head: a task begins with a head of zeros, in place of one that is meta-learnt (Kao, Chiu & Chen, "MAML
                is a noisy contrastive learner in classification", ICLR 2022).
        """
        if adapts == "adapters" or adapts == "lora":
            network = FewShotNetwork(with_inserts(network.body, adapts, rank), network.head)
        super().__init__(network, objective)
        self.any_ways = zero_head
        self.head_only = adapts == "head"
        self._inserts_only = adapts in ("adapters", "lora")
        self.rate = rate
        self.steps = steps
        self._names = [name for name, _ in network.named_parameters()]
        self._body = stacked_forward(network.body, "body.")
        self._head = stacked_forward(network.head, "head.")

    def weights(self) -> Weights:
        learnt = self.network.body.named_parameters("body") if self.any_ways else self.network.named_parameters()
        return {name: parameter.detach().clone() for name, parameter in learnt}

    @property
    def forward_pass(self) -> StackedForward:
        return self._body

    # --- within a task -----------------------------------------------------------------------------------------------

    def adapted_names(self) -> list[str]:
        if self.head_only:
            return [name for name in self._names if name.startswith("head.")]
        return [name for name in self._names if name.startswith("head.") or is_insert(name) or not self._inserts_only]

    def held(self, weights: Weights, step: int) -> Weights:
        """The weights of the body that step number `step` (from 0) does not change, at the least."""
        del step
        return weights

    def update(self, weights: Weights, fast: Weights, gradients: Weights, step: int) -> Weights:
        """The fast weights after step number `step` (from 0); by default plain gradient descent."""
        del weights, step
        return {name: torch.add(value, gradients[name], alpha=-self.rate) for name, value in fast.items()}

    def adapt(
        self, weights: Weights, support: Tensor, labels: Tensor, steps: int, differentiate: Differentiate
    ) -> list[Adapted]:
        tasks = len(support)
        if self.any_ways:
            weights = weights | self._zeros(support)
        fast = {name: weights[name].expand(tasks, *weights[name].shape) for name in self.adapted_names()}
        if self.head_only:
            support = self._body(weights, support)

        trajectory = [fast]
        for step in range(steps):
            held = self.held(weights, step)

            def loss(fast: Weights, held: Weights = held) -> Tensor:
                outputs = self._head(fast, support if self.head_only else self._body(held | fast, support))
                return self.objective.losses(outputs, labels).sum()

            at = {name: value.detach() for name, value in fast.items()} if self.first_order else fast
            gradients = differentiate(loss, at)
            if self.first_order:
                gradients = {name: value.detach() for name, value in gradients.items()}
            if self.head_factor != 1:
                own = {name: value * self.head_factor for name, value in gradients.items() if name.startswith("head.")}
                gradients = gradients | own
            fast = self.update(weights, fast, gradients, step)
            trajectory.append(fast)
        return trajectory

    def _zeros(self, like: Tensor) -> Weights:
        return {f"head.{name}": like.new_zeros(value.shape) for name, value in self.network.head.named_parameters()}

    def outputs(self, weights: Weights, adapted: Adapted, inputs: Tensor) -> Tensor:
        features = self._body(weights if self.head_only else weights | adapted, inputs)
        return self._head(adapted, features)

    def body(self, weights: Weights, adapted: Adapted) -> Weights:
        names = dict.fromkeys(name for name in (*self._names, *adapted) if name.startswith("body."))
        chosen = weights | adapted
        return {name.removeprefix("body."): chosen[name] for name in names}

    def linear(self, weights: Weights, adapted: Adapted) -> tuple[Tensor, Tensor]:
        del weights
        return adapted["head.weight"], adapted["head.bias"]

    # --- over tasks --------------------------------------------------------------------------------------------------

    def loss(self, weights: Weights, episodes: Episodes, progress: Tensor, differentiate: Differentiate) -> Tensor:
        del progress
        trajectory = self.adapt(weights, episodes.support, episodes.support_labels, self.steps, differentiate)
        return self.query_losses(weights, trajectory[-1], episodes).mean()

    def query_losses(self, weights: Weights, adapted: Adapted, episodes: Episodes) -> Tensor:
        """[T]."""
        outputs = self.outputs(weights, adapted, episodes.query)
        return self.objective.losses(outputs, episodes.query_labels, episodes.query_mask)
