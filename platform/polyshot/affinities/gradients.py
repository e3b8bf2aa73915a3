"""Affinity as agreement of gradients: their mean cosine at the shared parameters, and how often they conflict.

With g_a = ∂L_a/∂θ at the parameters θ that all tasks share, the affinity of two tasks is the mean over training of

    cos(g_a, g_b) = ⟨g_a, g_b⟩ / (‖g_a‖ ‖g_b‖),

and their conflict rate the share of batches in which it is negative (Yu et al., "Gradient Surgery for Multi-Task
Learning", NeurIPS 2020, definition 1; as a measure of task similarity: Du et al., "Adapting Auxiliary Losses Using
Gradient Similarity", 2018). All of it stands in the Gramian that gradient balancers use anyway. It is symmetric, so it
cannot say which of two tasks gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyshot.affinities.probing import Matrix, MeanLosses, probed, sharing_everything
from polyshot.balancing.backward import build_backward
from polyshot.balancing.base import GramianBalancer
from polyshot.data.prepare import Examples, Prepared
from polyshot.models.multitask import MultiTaskModel
from polyshot.progress import SILENT, Progress
from polyshot.study import Study


@dataclass(frozen=True)
class GradientAffinity:
    """The mean cosine [T, T] of each pair of tasks, and the share of batches [T, T] in which it was negative."""

    cosine: Matrix
    conflict: Matrix


class _Onlooker(GramianBalancer):
    """Asks for the Gramian; what it would weigh is never stepped along."""

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.ones(len(tasks))


def gradient_affinity(study: Study, prepared: Prepared, progress: Progress = SILENT) -> GradientAffinity:
    """Train once with hard sharing, and compare the tasks' gradients all along.

    A batch counts for a pair of tasks when it has labels of both; a pair that never had has NaN.
    """
    study = sharing_everything(study)

    def cosines(model: MultiTaskModel, mean_losses: MeanLosses, batch: Examples) -> Matrix:
        backward = build_backward(study, model, _Onlooker())
        backward.backward(mean_losses(backward.forward(batch.features), batch))
        assert backward.gramian is not None
        return cosine(backward.gramian)

    looks = np.array(list(probed(study, prepared, cosines, progress)))  # [S, T, T]
    there = np.isfinite(looks)
    with np.errstate(invalid="ignore"):
        return GradientAffinity(
            np.where(there, looks, 0).sum(0) / there.sum(0), (there & (looks < 0)).sum(0) / there.sum(0)
        )


def cosine(gramian: Matrix) -> Matrix:
    """G [T, T] → cosines [T, T]; NaN for a task without a gradient."""
    norms = np.sqrt(gramian.diagonal())
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(gramian / np.outer(norms, norms), -1, 1)
