"""Metrics of predictions against labels, in the target's own units, and which direction is better.

scikit-learn computes them on the gathered predictions of all workers, so that their number cannot change a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import sklearn.metrics
from numpy.typing import NDArray

from polyshot.data.targets import Target
from polyshot.models.heads import HeadLayout
from polyshot.study import Study

Array = NDArray[np.floating]
Metric = Callable[[NDArray, NDArray], float]

LOWER_IS_BETTER = frozenset({"rmse", "mae", "log_loss"})

# (labels, predictions): own units for regression, class indices and probabilities for classification.
_REGRESSION: dict[str, Metric] = {
    "rmse": lambda labels, predictions: float(np.sqrt(np.mean((labels - predictions) ** 2))),
    "mae": lambda labels, predictions: float(np.mean(np.abs(labels - predictions))),
    "r2": lambda labels, predictions: float(sklearn.metrics.r2_score(labels, predictions)),
}
_BINARY: dict[str, Metric] = {
    "roc_auc": lambda labels, scores: float(sklearn.metrics.roc_auc_score(labels, scores)),
    "average_precision": lambda labels, scores: float(sklearn.metrics.average_precision_score(labels, scores)),
    "accuracy": lambda labels, scores: float(np.mean(labels == (scores > 0.5))),
    "balanced_accuracy": lambda labels, scores: float(sklearn.metrics.balanced_accuracy_score(labels, scores > 0.5)),
    "f1": lambda labels, scores: float(sklearn.metrics.f1_score(labels, scores > 0.5, zero_division=0)),
    "log_loss": lambda labels, scores: float(sklearn.metrics.log_loss(labels, scores, labels=[0, 1])),
}
_MULTICLASS: dict[str, Metric] = {
    "accuracy": lambda labels, scores: float(np.mean(labels == scores.argmax(1))),
    "balanced_accuracy": lambda labels, scores: float(
        sklearn.metrics.balanced_accuracy_score(labels, scores.argmax(1))
    ),
    "f1": lambda labels, scores: float(
        sklearn.metrics.f1_score(labels, scores.argmax(1), average="macro", zero_division=0)
    ),
    "log_loss": lambda labels, scores: float(
        sklearn.metrics.log_loss(labels, scores, labels=list(range(scores.shape[1])))
    ),
}
METRICS: dict[str, dict[str, Metric]] = {"regression": _REGRESSION, "binary": _BINARY, "multiclass": _MULTICLASS}


def predictions(outputs: Array, target: Target, columns: slice) -> Array:
    """A task's predictions from the stacked outputs [N, O]: own units [N], P(positive) [N], or probabilities [N, C]."""
    own = outputs[:, columns].astype(np.float64)
    if target.kind == "regression":
        return target.decode(own[:, 0])
    if target.kind == "binary":
        return 1 / (1 + np.exp(-np.clip(own[:, 0], -500, 500)))
    exponentials = np.exp(own - own.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def evaluate(
    outputs: Array,
    labels: Array,
    mask: NDArray[np.bool_],
    targets: Sequence[Target],
    layout: HeadLayout,
    study: Study | None = None,
) -> dict[str, float]:
    """Metrics as `task/metric` of outputs [N, O] against labels and mask [N, T].

    With `study`, each task's chosen metric only (as after every epoch); otherwise all that its kind has. A metric that
    the labels do not define (ROC-AUC with one class present) is NaN.
    """
    values: dict[str, float] = {}
    for index, target in enumerate(targets):
        present = mask[:, index]
        known = labels[present, index].astype(np.float64)
        if target.kind == "regression":
            known = target.decode(known)
        predicted = predictions(outputs[present], target, layout.columns[index])
        chosen = [study.tasks[target.task].metric] if study else METRICS[target.kind]
        for name in chosen:
            values[f"{target.task}/{name}"] = _defined(METRICS[target.kind][name], known, predicted)
    return values


def _defined(metric: Metric, labels: NDArray, predicted: NDArray) -> float:
    if len(labels) == 0 or not np.isfinite(predicted).all():
        return float("nan")
    if metric in (_BINARY["roc_auc"], _BINARY["average_precision"]) and len(np.unique(labels)) < 2:
        return float("nan")
    return metric(labels, predicted)


def is_better(metric: str, value: float, than: float) -> bool:
    return value < than if metric in LOWER_IS_BETTER else value > than
