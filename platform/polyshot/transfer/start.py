"""How a method begins, and the run that comes of it: the platform's training loop with the method's model.

`begin` is called by the verb and by searches for every method, budget and repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyshot.balancing import Balancer
from polyshot.data.labels import LabelLayout
from polyshot.data.prepare import Examples, Prepared
from polyshot.errors import RunError
from polyshot.models.heads import HeadLayout
from polyshot.models.multitask import MultiTaskModel
from polyshot.saved_model import SavedModel
from polyshot.study import Study
from polyshot.study.transfer import TransferMethod
from polyshot.training.loop import TrainingRun
from polyshot.training.metrics import evaluate, labelled
from polyshot.transfer.model import ALL, Term, Training, TransferModel, from_source, plain, with_source_encoder
from polyshot.transfer.problem import Problem
from polyshot.transfer.source import Source

Predictions = dict[str, NDArray[np.floating]]  # by task: of the rows that have its label, as its metrics take them


@dataclass(frozen=True)
class Start:
    """A training that has not begun.

    Attributes:
        study, prepared: as the training loop takes them. The tasks of the problem are the first ones.
        saved: describes the model that is left when training is over, which reads rows as `prepared.features` does.
        model: with what the method adds to the loss and to the encoder; None for a fresh one of `study`.
        balancer: in place of the study's.
    """

    study: Study
    prepared: Prepared
    saved: Study
    model: TransferModel | None = None
    balancer: Balancer | None = None


class TransferRun(TrainingRun):
    """The training loop. A model with nothing to train has one epoch, in which it is evaluated."""

    def __init__(self, start: Start, problem: Problem):
        self._trains = start.model is None or any(p.requires_grad for p in start.model.parameters())
        study = start.study if self._trains else start.study.with_values({"training.epochs": 1})
        super().__init__(study, start.prepared, model=start.model, balancer=start.balancer)
        self.prepared = start.prepared
        self._saved = start.saved
        self._own_targets = problem.targets

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.steps if self._trains else 0

    def _train_epoch(self, number: int) -> float:
        return super()._train_epoch(number) if self._trains else 0.0

    def judged(self, examples: Examples) -> tuple[Predictions, dict[str, float]]:
        """Of the best epoch, predictions and all metrics (`task/metric`) of the target's tasks.

        Raises:
            TrainingDivergedError: when the run kept no epoch.
        """
        targets, layout = self._own_targets, self.model.layout
        own = LabelLayout.of(targets).columns[-1].stop
        known = self.best_outputs(examples), examples.targets[:, :own].numpy(), examples.mask[:, :own].numpy()
        of_own = targets, HeadLayout(layout.columns[: len(targets)], layout.width)
        predictions = {target.task: predicted for target, _, predicted in labelled(*known, *of_own)}
        return predictions, evaluate(*known, *of_own)

    def saved_model(self) -> SavedModel:
        """What the best epoch leaves: an ordinary model of the target's tasks, on the CPU.

        Raises:
            TrainingDivergedError: when the run kept no epoch.
        """
        self.restore_best()
        features, model = self.prepared.features, self.model.cpu().eval()
        if isinstance(model, TransferModel):
            model = plain(self._saved, self._own_targets, features.layout, model)
        return SavedModel(self._saved, model, features, self._own_targets)


def tuned(study: Study, settings: TransferMethod) -> Study:
    """The study with the method's own learning rate, if it has one."""
    if settings.learning_rate is None:
        return study
    return study.with_values({"training.optimiser.learning_rate": settings.learning_rate})


def on_source(
    problem: Problem,
    settings: TransferMethod,
    *,
    source: Source | None = None,
    training: Training = ALL,
    terms: Sequence[Term] = (),
) -> Start:
    """Training that starts from a source's encoder, by default the problem's, and from heads of tasks that it has."""
    source = source or problem.source
    study = with_source_encoder(tuned(problem.study, settings), source)
    if training.is_partial:
        study = plainly_weighed(study)
    prepared = problem.read_by(source)
    started = from_source(study, source, prepared.inputs, problem.targets)
    return Start(study, prepared, study, transferring(started, training, terms))


def transferring(model: MultiTaskModel, training: Training = ALL, terms: Sequence[Term] = ()) -> TransferModel:
    return TransferModel(model.sharing, model.heads, training, terms)


def require_rows(problem: Problem, method: str) -> None:
    """
    Raises:
        RunError: for a task of kind tokens, which a method cannot do that takes a row's features for one vector.
    """
    for target in problem.targets:
        if target.kind == "tokens":
            raise RunError(
                f"transfer.methods: '{method}' is of rows, and task '{target.task}' labels words; leave out the method"
            )


def plainly_weighed(study: Study) -> Study:
    """The study with fixed weights: where the encoder is not trained there is no gradient to balance."""
    return study.with_values({"balance.kind": "fixed"})


def fresh(problem: Problem) -> Start:
    """Training from scratch: what every method is compared with."""
    return Start(problem.study, problem.own, problem.study)
