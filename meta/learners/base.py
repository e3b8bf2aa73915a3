"""What every meta-learner can do: give its meta-weights, judge them on episodes, and adapt to labelled rows.

All work on the tasks of a batch at once. A learner holds no training state: meta-weights are passed in, so that the
engines can differentiate, flatten and compile what it computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyshot.meta.episodes.base import Episodes
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import Objective
from polyshot.meta.stacked import StackedForward, Weights

# What a task's rows made of a learner: weights, or a closed form's solution, each [T, ...].
Adapted = dict[str, Tensor]
# (scalar function of weights, weights) → its gradients by name; how depends on who differentiates the whole.
Differentiate = Callable[[Callable[[Weights], Tensor], Weights], Weights]


class Learner(ABC):
    """A way to learn tasks from a few rows. `network` holds the initial weights of its own parameters.

    Attributes:
        any_ways: whether the meta-weights are the same for any number of classes.
    """

    any_ways: bool = True

    def __init__(self, network: FewShotNetwork, objective: Objective):
        self.network = network
        self.objective = objective

    @abstractmethod
    def weights(self) -> Weights:
        """The initial meta-weights: all that meta-training changes."""

    @property
    @abstractmethod
    def forward_pass(self) -> StackedForward:
        """The part of the network that meta-training runs most of its time in."""

    @abstractmethod
    def adapt(
        self,
        weights: Weights,
        support: Tensor,
        labels: Tensor,
        steps: int,
        differentiate: Differentiate,
    ) -> list[Adapted]:
        """What `weights` become on the support rows [T, K, ...], after 0, 1, …, `steps` steps.

        A learner that solves for its solution gives that one only, whatever `steps`.
        """

    @abstractmethod
    def outputs(self, weights: Weights, adapted: Adapted, inputs: Tensor) -> Tensor:
        """[T, N, ...] → [T, N, O]."""

    @abstractmethod
    def loss(self, weights: Weights, episodes: Episodes, progress: Tensor, differentiate: Differentiate) -> Tensor:
        """The mean over tasks [] whose gradient at `weights` is the meta-gradient.

        Args:
            progress: [] from 0 to 1, how far meta-training has come.
        """

    @abstractmethod
    def body(self, weights: Weights, adapted: Adapted) -> Weights:
        """The parameters of the network's body for an adapted state, by their names in it."""

    @abstractmethod
    def linear(self, weights: Weights, adapted: Adapted) -> tuple[Tensor, Tensor]:
        """The head for an adapted state, a linear function of features whatever the learner.

        Weight [T, O, F] and bias [T, O]; classification logits may lack a term that all classes have in common.
        """

    def calibrated(self, weights: Weights, episodes: Episodes) -> Weights:
        """The weights with what the learner knows of training tasks beside what gradients taught it.

        To be asked for before adapting to tasks that are no training tasks; most learners have nothing to add.
        """
        del episodes
        return weights

    def reference(self) -> Any:
        """A `engines.learn2learn.Reference`: the same learner by learn2learn, or None where that has none."""
        return None


def by_autograd(*, create_graph: bool) -> Differentiate:
    """Gradients recorded for another differentiation, or not."""

    def differentiate(function: Callable[[Weights], Tensor], weights: Weights) -> Weights:
        with torch.enable_grad():
            weights = {
                name: value if create_graph and value.requires_grad else value.detach().requires_grad_()
                for name, value in weights.items()
            }
            gradients = torch.autograd.grad(
                function(weights), list(weights.values()), create_graph=create_graph, materialize_grads=True
            )
        return dict(zip(weights, gradients, strict=True))

    return differentiate
