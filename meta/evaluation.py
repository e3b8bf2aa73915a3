"""The protocol by which learners are judged: many tasks that nobody has seen, the metric after every step, intervals.

Used for validation while meta-training, and by `polyshot meta` at its end for the learner and, on the very same
episodes, for what it has to beat (`baselines`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from polyshot.meta.episodes import Episodes, EpisodeSource, Split
from polyshot.meta.learners.base import Adapted, Learner, by_autograd
from polyshot.meta.objectives import Objective
from polyshot.meta.stacked import Weights
from polyshot.seeds import derive_seed
from polyshot.study import Study

TASKS_AT_ONCE = 50  # bounds the memory, and is enough for the tasks to be stacked
_Z95 = 1.959964  # the normal quantile of a two-sided interval of 95 %


@dataclass(frozen=True)
class Scores:
    """How each of T tasks fared after 0, 1, …, S steps.

    Attributes:
        losses: [S + 1, T].
        metrics: [S + 1, T].
        bound: a loss above it is counted as divergence; infinite where only what is not a number is.
    """

    losses: Tensor
    metrics: Tensor
    bound: float

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """After the last step: mean loss [], mean metric [] and the share of losses that are not finite [].

        The means are those of the finite values.
        """
        losses, metrics = self.losses[-1], self.metrics[-1]
        known = losses.isfinite()
        return losses[known].mean(), metrics[metrics.isfinite()].mean(), 1 - known.to(losses.dtype).mean()

    def table(self, metric: str) -> pd.DataFrame:
        """One row per step: its number, mean, interval (half of the 95 % one), median, diverged (a fraction).

        A task whose metric is no finite number is told by `diverged` alone: the others are those of the other tasks.
        """
        rows = []
        for step, (losses, values) in enumerate(zip(self.losses, self.metrics, strict=True)):
            diverged = ~(losses <= self.bound) | ~values.isfinite()
            known = values[values.isfinite()]
            rows.append(
                {
                    "step": step,
                    "metric": metric,
                    "mean": known.mean().item(),
                    "interval": _Z95 * known.std().item() / math.sqrt(max(len(known), 1)),
                    "median": known.median().item() if len(known) else math.nan,
                    "diverged": diverged.double().mean().item(),
                }
            )
        return pd.DataFrame(rows)


def episode_batches(study: Study, source: EpisodeSource, split: Split, tasks: int) -> Iterator[Episodes]:
    """The `tasks` episodes of a split that the study is always judged by, some at a time."""
    for start in range(0, tasks, TASKS_AT_ONCE):
        generator = torch.Generator().manual_seed(derive_seed(study.seed, split, start))
        yield source.sample(split, min(TASKS_AT_ONCE, tasks - start), generator)


def score(learner: Learner, weights: Weights, batches: Iterable[Episodes], steps: int) -> Scores:
    """Adapt to the support of each task and judge every step on its query."""
    parts = [
        (*_judge(learner, weights, episodes, steps), _diverges_at(learner.objective, episodes)) for episodes in batches
    ]
    losses, metrics, bounds = zip(*parts, strict=True)
    return Scores(torch.cat(losses, 1), torch.cat(metrics, 1), max(bounds))


def _judge(learner: Learner, weights: Weights, episodes: Episodes, steps: int) -> tuple[Tensor, Tensor]:
    """Losses and metrics, [S + 1, T] each."""
    with torch.no_grad():
        differentiate = by_autograd(create_graph=False)
        trajectory = learner.adapt(weights, episodes.support, episodes.support_labels, steps, differentiate)
        return judged(learner, weights, trajectory, episodes)


def judged(
    learner: Learner, weights: Weights, trajectory: Iterable[Adapted], episodes: Episodes
) -> tuple[Tensor, Tensor]:
    """Losses and metrics of the query rows for each of the adapted states, [S + 1, T] each."""
    losses, metrics = [], []
    for adapted in trajectory:
        outputs = learner.outputs(weights, adapted, episodes.query)
        arguments = (outputs, episodes.query_labels, episodes.query_mask)
        losses.append(learner.objective.losses(*arguments))
        metrics.append(learner.objective.metrics(*arguments))
    return torch.stack(losses), torch.stack(metrics)


def _diverges_at(objective: Objective, episodes: Episodes) -> float:
    """Four times the largest mean square of a task's labels: no prediction by zero errs so much."""
    if objective.higher_is_better:
        return math.inf
    labels = episodes.query_labels.unsqueeze(2)
    return 4 * objective.losses(torch.zeros_like(labels), episodes.query_labels, episodes.query_mask).max().item()
