"""A training run that is looked at on its way: what `gradients` and `lookahead` measure, averaged over training.

Between epochs the model as it stands is shown some batches of training rows. The run itself goes on as if nobody had
looked: nothing is stepped, no statistics of batch normalisation move, no random numbers are drawn from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyshot.data.prepare import Examples, Prepared
from polyshot.models.multitask import MultiTaskModel
from polyshot.progress import SILENT, Progress
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.training.loop import TrainingRun
from polyshot.training.losses import TaskLosses

Matrix = NDArray[np.float64]  # [T, T]: row a, column b is what learning task a is to task b
_LOOKS = 400  # in the whole budget of epochs: bounds what looking costs

MeanLosses = Callable[[Tensor, Examples], Tensor]
Probe = Callable[[MultiTaskModel, MeanLosses, Examples], Matrix]


def sharing_everything(study: Study) -> Study:
    """The study as affinity is measured in it: hard sharing, the study's task weights, in this process."""
    return study.with_values(
        {
            "model.sharing": {"kind": "hard"},
            "balance": {"kind": "fixed"},
            "scale.workers": 1,
            "scale.engine": "process",
        }
    )


def probed(study: Study, prepared: Prepared, probe: Probe, progress: Progress = SILENT) -> Iterator[Matrix]:
    """Train the study's model and yield what `probe` finds at each look.

    `probe` is given the model in evaluation mode (so that dropout adds no noise), a function from outputs and batch to
    the tasks' mean losses [T], and a batch. It may leave gradients behind.

    Raises:
        TrainingDivergedError: when the loss was never a number.
    """
    run = TrainingRun(study, prepared)
    losses, labels = TaskLosses(study, prepared.targets, run.model.layout), prepared.labels

    def mean_losses(outputs: Tensor, batch: Examples) -> Tensor:
        counts = labels.totals(batch.mask.sum(0))
        return losses(outputs, batch.targets, batch.mask) / counts.clamp(min=1)

    rows = prepared.train.to(run.device)
    epochs = run.epochs()
    activity = "training for affinity"
    progress.start(activity, study.training.epochs)
    while not run.finished:
        run.model.eval()
        for batch in _batches(study, rows, len(run.history) + 1):
            yield probe(run.model, mean_losses, batch)
        progress.advance(activity, next(epochs).number)
    run.restore_best()  # or say that it diverged
    progress.finish(activity)


def _batches(study: Study, rows: Examples, epoch: int) -> Iterator[Examples]:
    """Random batches of the study's size for one epoch: its share of the looks, at most each row once."""
    size = study.training.batch_size
    wanted = max(1, _LOOKS // study.training.epochs)
    generator = torch.Generator().manual_seed(derive_seed(study.seed, "probe", epoch))
    order = torch.randperm(len(rows.features), generator=generator).to(rows.features.device)
    for chosen in order.split(size)[:wanted]:
        yield Examples(rows.features[chosen], rows.targets[chosen], rows.mask[chosen])
