"""Small studies and their tensors, made by hand, for the tests of models, balancing and training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from polyshot.data.prepare import Examples, Prepared, TrainingData
from polyshot.data.targets import Target
from polyshot.study import Study
from polyshot.training.loop import TrainingRun

torch.set_num_threads(1)  # for models as small as these, threads that wait for each other are the larger part

THREE_TASKS: dict[str, Any] = {
    "price": {"kind": "regression", "weight": 2},
    "sold": {"kind": "binary"},
    "region": {"kind": "multiclass"},
}


def make_study(values: dict[str, Any] | None = None, tasks: dict[str, Any] | None = None) -> Study:
    """A small study of a regression, a binary and a multiclass task, with other `values` by dotted key."""
    study = Study.from_dict(
        {
            "name": "test",
            "data": {"source": "rows.csv"},
            "tasks": tasks or THREE_TASKS,
            "model": {"encoder": {"width": 16}},
            "training": {"epochs": 6, "batch_size": 32, "optimiser": {"learning_rate": 1e-2}, "early_stopping": None},
            "scale": {"device": "cpu"},
        }
    )
    return study.with_values(values or {})


def make_prepared(
    study: Study, rows: tuple[int, int, int] = (203, 101, 60), inputs: int = 6, missing: float = 0.2, noise: float = 0.1
) -> Prepared:
    """Data for the study's tasks whose labels are functions of the features, a share of them missing.

    Every task's label is made of a projection of the same features, so that there is something to learn.
    """
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(sum(rows), inputs, generator=generator)
    labels, targets = [], []
    for name, task in study.tasks.items():
        signal = torch.tanh(features @ torch.randn(inputs, generator=generator))
        signal = signal + noise * torch.randn(len(signal), generator=generator)
        match task.kind:
            case "regression":
                labels.append((signal - signal.mean()) / signal.std())
                targets.append(Target(name, "regression", name, mean=50.0, scale=10.0))
            case "binary":
                labels.append((signal > 0).float())
                targets.append(Target(name, "binary", name, classes=["no", "yes"]))
            case "multilabel":
                thresholds = torch.linspace(-0.3, 0.3, len(task.target))
                labels += [(signal > threshold).float() for threshold in thresholds]
                targets.append(Target(name, "multilabel", task.target[0], classes=[0, 1], labels=task.target))
            case _:
                labels.append(torch.bucketize(signal, torch.tensor([-0.5, 0.5])).float())
                targets.append(Target(name, "multiclass", name, classes=["a", "b", "c"]))
    known = torch.rand(len(features), len(labels), generator=generator) >= missing
    encoded = torch.stack(labels, 1) * known
    splits = [
        Examples(*parts) for parts in zip(*(table.split(rows) for table in (features, encoded, known)), strict=True)
    ]
    train, validation, test = splits
    return Prepared(train, validation, targets, test, features=None, rows={}, notes=[], example=None)  # type: ignore[arg-type]


class LinearEncoder(nn.Module):
    """An encoder as a user may write it."""

    def __init__(self, inputs: int, outputs: int = 8):
        super().__init__()
        self.outputs = outputs
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


def trained(study: Study, prepared: TrainingData) -> TrainingRun:
    """A run of the study that has come to its end."""
    run = TrainingRun(study, prepared)
    for _ in run.epochs():
        pass
    return run
