"""MAML (Finn, Abbeel & Levine, "Model-agnostic meta-learning", ICML 2017), with refinements of MAML++.

Antoniou, Edwards & Storkey, "How to train your MAML" (ICLR 2019): a learnt step size for every step and layer (LSLR),
the loss after every step counted (MSL), batch normalisation with an affine part and statistics for every step (BNWB,
BNRS). Their annealed outer rate is `meta.schedule`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from polyshot.errors import Problem, StudyError
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Adapted, Differentiate, by_autograd
from polyshot.meta.learners.gradient import RATES, GradientLearner
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import Objective
from polyshot.meta.stacked import STATISTICS, Weights

# The share of meta-training over which the losses after the steps before the last lose their weight.
_ANNEALED = 0.5
_NORMS = "norms."  # what the parts of batch normalisation are called that are there for every step


class MAML(GradientLearner):
    """θ ← θ − α ∇L(θ) on the support rows, differentiated through."""

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
        per_step_rates: bool = False,
        multi_step_loss: bool | Literal["equal"] = False,
        per_step_norm: bool = False,
    ):
        """
        Raises:
            StudyError: when normalisation is to be per step, and the network has none or is no chain of known layers.
        """
        super().__init__(network, objective, rate=rate, steps=steps, adapts=adapts, rank=rank, zero_head=zero_head)
        self._per_step_rates = per_step_rates
        self._multi_step_loss = multi_step_loss
        self._norms = self._body.norms if per_step_norm else []
        if per_step_norm and not self._norms:
            message = (
                "needs batch normalisation in a network that is a torch.nn.Sequential of layers that torch has; "
                "use 'batch' as model.encoder.normalisation, or set it to false"
            )
            raise StudyError([Problem("meta.learner.per_step_norm", message)])

    def weights(self) -> Weights:
        weights = super().weights()
        if self._per_step_rates:
            like = next(iter(weights.values()))
            weights |= {f"{RATES}{name}": like.new_full((self.steps,), self.rate) for name in self.adapted_names()}
        for name in self._affine_names():
            weights[f"{_NORMS}{name}"] = weights[name].repeat(self.steps, 1)
        return weights

    # --- normalisation for every step --------------------------------------------------------------------------------

    def adapted_names(self) -> list[str]:
        own = set(self._affine_names())  # what is there for every step is no step's to change
        return [name for name in super().adapted_names() if name not in own]

    def held(self, weights: Weights, step: int) -> Weights:
        step = min(step, self.steps - 1)
        return weights | {name: weights[f"{_NORMS}{name}"][step] for name in self._affine_names()}

    def adapt(
        self, weights: Weights, support: Tensor, labels: Tensor, steps: int, differentiate: Differentiate
    ) -> list[Adapted]:
        """A state has the normalisation that goes with it: of the step that led to it, and of the first at first.

        Support rows are normalised by their own statistics, as in training; others by those of `calibrated` weights.
        """
        trajectory = super().adapt(weights, support, labels, steps, differentiate)
        if not self._norms:
            return trajectory
        return [state | self._norm_after(weights, step, len(support)) for step, state in enumerate(trajectory)]

    def calibrated(self, weights: Weights, episodes: Episodes) -> Weights:
        """With the mean statistics, over training tasks, of query rows after every number of steps: [S + 1, C].

        These are measured with the weights at hand: a mean that ran along with training would lag behind them.
        """
        if not self._norms:
            return weights
        differentiate = by_autograd(create_graph=False)
        with torch.no_grad():
            trajectory = self.adapt(weights, episodes.support, episodes.support_labels, self.steps, differentiate)
            found = [self._body.statistics(weights | state, episodes.query) for state in trajectory]
        means = {name: torch.stack([statistics[name].mean(0) for statistics in found]) for name in found[0]}
        return weights | {f"{_NORMS}{name}": value for name, value in means.items()}

    def _affine_names(self) -> list[str]:
        return [f"{norm}{part}" for norm in self._norms for part in ("weight", "bias")]

    def _norm_after(self, weights: Weights, step: int, tasks: int) -> Weights:
        rows = {name: min(max(step - 1, 0), self.steps - 1) for name in self._affine_names()}
        rows |= {f"{norm}{part}": min(step, self.steps) for norm in self._norms for part in STATISTICS}
        chosen = {name: weights.get(f"{_NORMS}{name}") for name in rows}
        return {name: value[rows[name]].expand(tasks, -1) for name, value in chosen.items() if value is not None}

    # --- steps and losses --------------------------------------------------------------------------------------------

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
        if self._multi_step_loss == "equal":
            return torch.stack(losses).mean()
        # Equal shares at first; those of the earlier steps then fall to zero, and the last step's rises to one.
        early = (1 - progress / _ANNEALED).clamp(min=0) / self.steps
        return torch.stack(losses[:-1]).sum() * early + losses[-1] * (1 - (self.steps - 1) * early)

    def reference(self) -> Any:
        if self._per_step_rates or self._multi_step_loss or self._norms:
            return None
        from polyshot.meta.engines.learn2learn import maml

        return maml(self)
