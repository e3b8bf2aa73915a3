"""What a meta-learner has to beat, judged on the very same episodes by the same protocol.

Each baseline is a learner with weights that took no meta-learning: a network that starts from nothing, one that was
pre-trained on all tasks at once, and linear models or nearest means on raw inputs and on the meta-learnt features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyshot.meta.episodes import Classes, EpisodeSource
from polyshot.meta.learners import Learner
from polyshot.meta.learners.base import Adapted, Differentiate
from polyshot.meta.learners.gradient import GradientLearner
from polyshot.meta.learners.protonet import ProtoNet
from polyshot.meta.learners.ridge import Ridge
from polyshot.meta.networks import FewShotNetwork, build_network
from polyshot.meta.objectives import SquaredError
from polyshot.meta.stacked import Weights
from polyshot.meta.training import MetaRun
from polyshot.study import Study

SCRATCH_STEPS = 100
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_SCRATCH_RATE = _FINE_TUNING_RATE = 0.01


@dataclass(frozen=True)
class Baseline:
    """A learner that was not meta-trained, its weights, and how many steps it takes within a task."""

    name: str
    learner: Learner
    weights: Weights
    steps: int


class FromScratch(GradientLearner):
    """Adam on the support rows from the same random weights for every task; gives the last state only."""

    first_order = True

    def adapt(
        self, weights: Weights, support: Tensor, labels: Tensor, steps: int, differentiate: Differentiate
    ) -> list[Adapted]:
        state = super().adapt(weights, support, labels, 0, differentiate)[0]
        means = {name: torch.zeros_like(value) for name, value in state.items()}
        squares = {name: torch.zeros_like(value) for name, value in state.items()}

        def loss(state: Weights) -> Tensor:
            return self.objective.losses(self.outputs(weights, state, support), labels).sum()

        for step in range(1, steps + 1):
            for name, gradient in differentiate(loss, state).items():
                means[name] = torch.lerp(gradient, means[name], _BETAS[0])
                squares[name] = torch.lerp(gradient.square(), squares[name], _BETAS[1])
                mean, square = means[name] / (1 - _BETAS[0] ** step), squares[name] / (1 - _BETAS[1] ** step)
                state = state | {name: state[name] - _SCRATCH_RATE * mean / (square.sqrt() + _EPSILON)}
        return [state]


def baselines(study: Study, source: EpisodeSource, run: MetaRun, steps: int) -> Iterator[Baseline]:
    """The baselines of a meta-trained `run`.

    Args:
        steps: of fine-tuning, as many as the meta-learner is given.
    """
    network = build_network(study, source.shape, source.outputs)
    scratch = FromScratch(network, source.objective, rate=_SCRATCH_RATE, steps=SCRATCH_STEPS)
    yield Baseline("from scratch", scratch, scratch.weights(), SCRATCH_STEPS)
    if not isinstance(source, Classes):  # whose labels mean something else in every task
        yield _pretrained(study, source, steps)
    raw = FewShotNetwork(nn.Flatten(), nn.Linear(math.prod(source.shape), source.outputs))
    yield _closed_form("on raw inputs", raw, source, {})
    weights = run.best_weights()
    body = {name: value for name, value in weights.items() if name.startswith("body.")}
    yield _closed_form("on frozen features", run.learner.network, source, body)


def _pretrained(study: Study, source: EpisodeSource, steps: int) -> Baseline:
    """The network trained to serve all tasks without adapting, under the same budget, then fine-tuned to each."""
    network = build_network(study, source.shape, source.outputs)
    rate = getattr(study.meta.learner, "rate", _FINE_TUNING_RATE)
    pooled = GradientLearner(network, source.objective, rate=rate, steps=0)
    run = MetaRun(study.with_values({"meta.joint": None}), source, learner=pooled)
    for _ in run.iterations():
        pass
    return Baseline("pre-trained then fine-tuned", pooled, run.best_weights(), steps)


def _closed_form(where: str, network: FewShotNetwork, source: EpisodeSource, body: Weights) -> Baseline:
    if isinstance(source.objective, SquaredError):
        ridge = Ridge(network, source.objective, penalty=1.0)
        return Baseline(f"ridge {where}", ridge, ridge.weights() | body, 0)
    nearest = ProtoNet(network, source.objective)
    return Baseline(f"nearest mean {where}", nearest, nearest.weights() | body, 0)
