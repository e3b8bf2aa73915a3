"""One method at one budget in one repetition: trained once, kept on disk, and read from there ever after.

The verb asks for all of them; an interrupted or widened comparison trains only those that are not there yet.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from polyshot import working_copy
from polyshot.models.multitask import build_model
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import write_atomically, write_json
from polyshot.saved_model import SavedModel
from polyshot.study.transfer import SCRATCH, Distillation, MetaLearned, TransferMethod
from polyshot.training.loop import Epoch
from polyshot.transfer.methods import prepare
from polyshot.transfer.problem import FOLD, Budget, Problem, Sources, TargetData
from polyshot.transfer.start import Predictions, Start, TransferRun, fresh


@dataclass(frozen=True)
class Outcome:
    """What one training gave.

    Attributes:
        method: its name in the study, or `scratch`.
        fold: of the cross-validation, from 0; without one 0.
        labels: how many training rows had one.
        metrics: by split, all metrics of all tasks, as `task/metric`.
        predictions: by split.
        history: its learning curve.
        steps: updates of an epoch.
    """

    method: str
    budget: Budget
    repetition: int
    fold: int
    labels: int
    metrics: dict[str, dict[str, float]]
    predictions: dict[str, Predictions]
    history: list[Epoch]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A training, whether it was done or not.

    Attributes:
        name: the method's.
        settings: the method's; None for training from scratch.
        fold: of the cross-validation, from 0.
    """

    name: str
    settings: TransferMethod | None
    problem: Problem
    fold: int = 0

    def begin(self) -> TransferRun:
        """A run that has not begun.

        Raises:
            PolyshotError: when the source or the target lacks what the method needs.
        """
        return TransferRun(self._start(), self.problem)

    def _start(self) -> Start:
        return fresh(self.problem) if self.settings is None else prepare(self.settings, self.problem)

    def outcome(self, cache: Path, progress: Progress = SILENT) -> Outcome:
        """What the training gave, from `cache` where it was done before."""
        path = self._path(cache)
        if not all(working_copy.has(path.with_suffix(kind)) for kind in (".pt", ".npz", ".json")):
            self._train(path, progress)
        return _read(path, self)

    def model(self, cache: Path) -> tuple[SavedModel, pd.DataFrame]:
        """The model that `outcome` left, and some raw rows of its table."""
        start, weights = self._start(), self._path(cache).with_suffix(".pt")
        features = start.prepared.features
        model = build_model(start.saved, features.layout, self.problem.targets)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return SavedModel(start.saved, model.eval(), features, self.problem.targets), start.prepared.example

    def _train(self, path: Path, progress: Progress) -> None:
        started = time.perf_counter()
        run = self.begin()
        words = budget_words(self.problem.budget, self.problem.study.transfer.per_class)
        fold = f", fold {self.fold + 1}" if self.problem.study.data.split.column == FOLD else ""
        activity = f"{self.name}, {words}, repetition {self.problem.repetition + 1}{fold}"
        progress.start(activity, run.study.training.epochs)
        for epoch in run.epochs():
            progress.advance(activity, epoch.number, f"validation loss {epoch.metrics['val/loss']:.4g}")
        predictions, metrics = {}, {}
        for split, examples in (("validation", run.prepared.validation), ("test", run.prepared.test)):
            predictions[split], metrics[split] = run.judged(examples)
        weights = run.saved_model().model.state_dict()
        write_atomically(path.with_suffix(".pt"), lambda file: torch.save(weights, file))
        arrays = {f"{split}/{task}": values for split, tasks in predictions.items() for task, values in tasks.items()}
        write_atomically(path.with_suffix(".npz"), lambda file: np.savez(file, allow_pickle=False, **arrays))
        write_json(
            path,
            {
                "labels": len(self.problem.labelled),
                "metrics": metrics,
                "history": [asdict(epoch) for epoch in run.history],
                "steps": run.steps_per_epoch,
                "seconds": time.perf_counter() - started,
            },
        )
        for kind in (".pt", ".npz", ".json"):
            working_copy.push(path.with_suffix(kind))
        progress.finish(activity, f"best epoch {run.best.number}" if run.best else "")

    def _path(self, cache: Path) -> Path:
        """The file of its outcome, whose name changes with all that it depends on."""
        target, sources = self.problem.target, self.problem.sources
        parts: list[Any] = [target.digest, target.study.transfer.per_class]
        if self.settings is not None:
            parts += [self.settings.model_dump(mode="json"), sources.main.digest]
        if isinstance(self.settings, Distillation) and self.settings.teacher is not None:
            parts.append(sources.teachers[self.settings.teacher].digest)
        if isinstance(self.settings, MetaLearned):
            weights = sources.learners[self.settings.run].weights
            parts.append([float(value.double().sum()) for value in weights.values()])
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
        return cache / f"{self.name}-{self.problem.budget}-{self.problem.repetition}-{digest}.json"


def _read(path: Path, trial: Trial) -> Outcome:
    saved = json.loads(path.read_text(encoding="utf-8"))
    predictions: dict[str, Predictions] = {}
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        for name, values in arrays.items():
            split, _, task = name.partition("/")
            predictions.setdefault(split, {})[task] = values
    history = [Epoch(**epoch) for epoch in saved.pop("history")]
    problem = trial.problem
    return Outcome(
        method=trial.name,
        budget=problem.budget,
        repetition=problem.repetition,
        fold=trial.fold,
        predictions=predictions,
        history=history,
        **saved,
    )


def trials_of(target: TargetData, sources: Sources, fold: int = 0) -> list[Trial]:
    """All trainings on one split: budgets from small to large, and of each first those from scratch.

    Raises:
        DataError: for a budget that the training split does not have, or that is too small for a task.
    """
    transfer = target.study.transfer
    methods: dict[str, TransferMethod | None] = {SCRATCH: None, **transfer.methods}
    budgets = sorted(transfer.budgets, key=lambda budget: math.inf if budget == "all" else budget)
    return [
        Trial(name, settings, problem, fold)
        for budget in budgets
        for problem in [Problem.of(target, sources, budget, number) for number in range(transfer.seeds)]
        for name, settings in methods.items()
    ]


def budget_words(budget: Budget, per_class: bool = False) -> str:
    return "all labels" if budget == "all" else f"{budget} labels{' of each class' if per_class else ''}"
