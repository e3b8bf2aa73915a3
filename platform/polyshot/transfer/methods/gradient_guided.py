"""Gradient-guided transfer: mixed training in which the source's gradients lose what points against the target's.

The projection of Yu et al., "Gradient Surgery for Multi-Task Learning" (NeurIPS 2020), equation 1, on one side only: a
source gradient with ⟨g_s, g_t⟩ < 0 becomes g_s − ⟨g_s, g_t⟩ / ‖g_t‖² · g_t, where g_t is the sum of the target's
gradients, which stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyshot.balancing import GramianBalancer
from polyshot.study import Study
from polyshot.study.transfer import GradientGuided
from polyshot.transfer.mixing import mixed
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start


class OneSided(GramianBalancer):
    """The first tasks guide; the gradients of the others are made to agree with the sum of theirs."""

    def __init__(self, guides: int, loss_scales: Sequence[float] | None = None):
        super().__init__(loss_scales)
        self._guides = guides

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        guides = tasks < self._guides
        weights = np.ones(len(tasks))
        square = gramian[np.ix_(guides, guides)].sum()  # ‖g_t‖²
        if square > 0:
            against = np.minimum(gramian[np.ix_(~guides, guides)].sum(1), 0)  # ⟨g_s, g_t⟩ where it is negative
            weights[guides] -= against.sum() / square
        return weights


def prepare(settings: GradientGuided, problem: Problem) -> Start:
    return mixed(problem, settings, balancer=_balancer, apart=True)


def _balancer(study: Study, guides: int) -> OneSided:
    weights = list(study.task_weights.values())
    return OneSided(guides, [len(weights) * weight for weight in weights])
