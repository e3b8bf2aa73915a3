"""Affinity as looking ahead (TAG): how much a step on one task lowers the loss of another, right away.

Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning" (NeurIPS 2021), equation 1. With θ the
shared parameters at step t, φ_b those of task b alone, and a look at what a step on task a alone would do to them,

    θ_a = θ − η ∂L_a/∂θ,    Z_{a→b} = 1 − L_b(θ_a, φ_b) / L_b(θ, φ_b),

averaged over training: positive where learning a helps b, and not symmetric. η is the optimiser's learning rate, and
the step looked at plain gradient descent, as in the equation, whatever the optimiser.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.func import functional_call

from polyshot.affinities.probing import Matrix, MeanLosses, probed, sharing_everything
from polyshot.data.labels import LabelLayout
from polyshot.data.prepare import Examples, Prepared
from polyshot.models.multitask import MultiTaskModel
from polyshot.progress import SILENT, Progress
from polyshot.study import Study


def lookahead_affinity(study: Study, prepared: Prepared, progress: Progress = SILENT) -> Matrix:
    """Train once with hard sharing, and look one step ahead all along: Z [T, T], row a, column b is Z_{a→b}.

    A batch counts for a pair of tasks when it has labels of both; a pair that never had has NaN.
    """
    rate = study.training.optimiser.learning_rate

    def ahead(model: MultiTaskModel, mean_losses: MeanLosses, batch: Examples) -> Matrix:
        return look_ahead(model, mean_losses, batch, rate, prepared.labels)

    looks = np.array(list(probed(sharing_everything(study), prepared, ahead, progress)))  # [S, T, T]
    there = np.isfinite(looks)
    with np.errstate(invalid="ignore"):
        return np.where(there, looks, 0).sum(0) / there.sum(0)


def look_ahead(
    model: MultiTaskModel, mean_losses: MeanLosses, batch: Examples, rate: float, labels: LabelLayout
) -> Matrix:
    """Z [T, T] on one batch for steps of the size `rate`; NaN for tasks without a label in it."""
    ids = {id(parameter) for parameter in model.shared_parameters()}
    shared = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ids}
    before = mean_losses(model(batch.features), batch)  # [T]
    after = []
    for loss in before:
        gradients = torch.autograd.grad(
            loss, list(shared.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            stepped = {
                name: value - rate * slope for (name, value), slope in zip(shared.items(), gradients, strict=True)
            }
            after.append(mean_losses(functional_call(model, stepped, (batch.features,)), batch))
    ratios = (torch.stack(after) / before.detach()).double().cpu().numpy()
    known = labels.labelled(batch.mask).any(0).cpu().numpy()
    return np.where(np.outer(known, known), 1 - ratios, np.nan)
