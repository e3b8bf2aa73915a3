"""Metrics of predictions against labels, in the target's own units, and which direction is better.

They are computed on the gathered predictions of all workers, so that their number cannot change a metric; and in plain
NumPy, because after every epoch of a small run scikit-learn's checks of its arguments would cost more than the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from polyshot.data.labels import LabelLayout
from polyshot.data.targets import Target
from polyshot.data.words import entity_codes
from polyshot.models.heads import HeadLayout
from polyshot.study import Study
from polyshot.training.entities import entity_counts

Array = NDArray[np.floating]
Metric = Callable[[NDArray, NDArray], float]

LOWER_IS_BETTER = frozenset({"rmse", "mae", "mse", "log_loss", "loss"})


# --- regression: labels and predictions [N] in own units -------------------------------------------------------------


def _rmse(labels: Array, predicted: Array) -> float:
    return math.sqrt(np.mean((labels - predicted) ** 2))


def _mae(labels: Array, predicted: Array) -> float:
    return float(np.mean(np.abs(labels - predicted)))


def _r2(labels: Array, predicted: Array) -> float:
    spread = np.sum((labels - labels.mean()) ** 2)
    return float(1 - np.sum((labels - predicted) ** 2) / spread) if spread else math.nan


# --- ranking: labels [N] of 0 and 1, probabilities of 1 [N] ----------------------------------------------------------


def _roc_auc(labels: Array, scores: Array) -> float:
    """The probability that a positive row outranks a negative one, ties counting half."""
    positive = labels == 1
    positives = positive.sum()
    negatives = len(labels) - positives
    if not positives or not negatives:
        return math.nan
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2  # of each distinct score, from 1, the mean where scores are tied
    return float((ranks[place[positive]].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _average_precision(labels: Array, scores: Array) -> float:
    """Σ (R_n - R_{n-1}) P_n over the distinct thresholds, from the highest on."""
    if len(np.unique(labels)) < 2:
        return math.nan
    order = np.argsort(-scores)
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(labels[order])[last_of_ties]
    precision = found / (np.flatnonzero(last_of_ties) + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / found[-1])


# --- decisions: labels and decided classes [N] -----------------------------------------------------------------------


def _accuracy(labels: Array, decided: NDArray) -> float:
    return float(np.mean(labels == decided))


def _balanced_accuracy(labels: Array, decided: NDArray) -> float:
    """The mean recall of the classes that the labels have."""
    return float(np.mean([np.mean(decided[labels == c] == c) for c in np.unique(labels)]))


def _f1(labels: Array, decided: NDArray, c: float = 1) -> float:
    """The F1 score of class `c`; 0 where it is neither there nor decided."""
    hits = np.sum((labels == c) & (decided == c))
    total = np.sum(labels == c) + np.sum(decided == c)
    return float(2 * hits / total) if total else 0.0


def _precision(labels: Array, decided: NDArray) -> float:
    """How many of those decided for are positive; 0 where there are none."""
    return float(np.mean(labels[decided == 1])) if (decided == 1).any() else 0.0


def _recall(labels: Array, decided: NDArray) -> float:
    """How many of the positives are decided for; 0 where there are none."""
    return float(np.mean(decided[labels == 1])) if (labels == 1).any() else 0.0


def _macro_f1(labels: Array, decided: NDArray) -> float:
    """The mean F1 score of the classes that are there or decided."""
    return float(np.mean([_f1(labels, decided, c) for c in np.union1d(labels, decided)]))


def _log_loss(labels: Array, probabilities: Array) -> float:
    """`probabilities` [N, C] of every class."""
    of_label = probabilities[np.arange(len(labels)), labels.astype(np.int64)]
    return float(-np.mean(np.log(np.clip(of_label, np.finfo(np.float64).eps, 1))))


# --- several labels: labels [N, K] of 0 and 1, NaN where missing, and probabilities of 1 [N, K] ----------------------


def _macro(metric: Metric) -> Metric:
    """The mean over labels of a binary metric; a label whose known rows do not define it is left out."""

    def over_labels(labels: Array, scores: Array) -> float:
        known = ~np.isnan(labels)
        columns = zip(labels.T, scores.T, known.T, strict=True)
        values = [metric(own[rows], of_label[rows]) for own, of_label, rows in columns if rows.any()]
        defined = [value for value in values if not math.isnan(value)]
        return float(np.mean(defined)) if defined else math.nan

    return over_labels


# By kind: (labels, predictions as `predictions` gives them) -> metric; NaN where the labels do not define it.
METRICS: dict[str, dict[str, Metric]] = {
    "regression": {"rmse": _rmse, "mae": _mae, "r2": _r2},
    "binary": {
        "roc_auc": _roc_auc,
        "average_precision": _average_precision,
        "accuracy": lambda labels, scores: _accuracy(labels, scores > 0.5),
        "balanced_accuracy": lambda labels, scores: _balanced_accuracy(labels, scores > 0.5),
        "f1": lambda labels, scores: _f1(labels, scores > 0.5),
        "precision": lambda labels, scores: _precision(labels, scores > 0.5),
        "recall": lambda labels, scores: _recall(labels, scores > 0.5),
        "log_loss": lambda labels, scores: _log_loss(labels, np.stack([1 - scores, scores], 1)),
    },
    "multiclass": {
        "accuracy": lambda labels, scores: _accuracy(labels, scores.argmax(1)),
        "balanced_accuracy": lambda labels, scores: _balanced_accuracy(labels, scores.argmax(1)),
        "f1": lambda labels, scores: _macro_f1(labels, scores.argmax(1)),
        "log_loss": _log_loss,
    },
}
# --- words: codes [N, W] of labels, NaN behind the last word, and of decisions ----------------------------------------


def _of_entities(score: Callable[[Array], Array]) -> Metric:
    def metric(labels: Array, decided: Array) -> float:
        return float(score(entity_counts(labels, decided).sum(0, keepdims=True).T)[0])

    return metric


def ratio(part: Array, whole: Array) -> Array:
    """0 where there is no whole, as seqeval has it."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


# Of how many entities are right, there and found [3, R] -> [R].
ENTITY_SCORES: dict[str, Callable[[Array], Array]] = {
    "f1": lambda counts: ratio(2 * counts[0], counts[1] + counts[2]),
    "precision": lambda counts: ratio(counts[0], counts[2]),
    "recall": lambda counts: ratio(counts[0], counts[1]),
}


def _word_accuracy(labels: Array, decided: Array) -> float:
    there = ~np.isnan(labels)
    return float(np.mean(labels[there] == decided[there]))


METRICS["tokens"] = {name: _of_entities(score) for name, score in ENTITY_SCORES.items()} | {"accuracy": _word_accuracy}
METRICS["multilabel"] = {name: _macro(metric) for name, metric in METRICS["binary"].items()}


def predictions(outputs: Array, target: Target, columns: slice) -> Array:
    """A task's predictions from the stacked outputs [N, O].

    Own units [N], P(positive) [N], probabilities [N, C] of classes or [N, K] of labels; of words, the codes [N, W] of
    the labels decided for (see `data.words.entity_codes`).
    """
    if target.kind == "tokens":
        return label_codes(target)[decided_labels(outputs, target, columns)]
    own = outputs[:, columns].astype(np.float64)
    if target.kind == "regression":
        return target.decode(own[:, 0])
    if target.kind in ("binary", "multilabel"):
        positive = 1 / (1 + np.exp(-np.clip(own, -500, 500)))
        return positive[:, 0] if target.kind == "binary" else positive
    exponentials = np.exp(own - own.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def decided_labels(outputs: Array, target: Target, columns: slice) -> NDArray[np.int64]:
    """The most probable label [N, W] of each word by a task of kind tokens; C, which is none, where no number is."""
    own = outputs[:, columns].reshape(len(outputs), target.places, target.head)
    return np.where(np.isfinite(own).all(2), own.argmax(2), target.head)


def label_codes(target: Target) -> Array:
    """The code of each label [C], and NaN behind them."""
    return np.append(entity_codes([str(label) for label in target.classes or []]).astype(np.float64), np.nan)


def labelled(
    outputs: Array, labels: Array, mask: NDArray[np.bool_], targets: Sequence[Target], layout: HeadLayout
) -> Iterator[tuple[Target, Array, Array]]:
    """Of each task, the labels [n] of the rows that have one and the predictions for these, as its metrics take them.

    Of a multilabel task, labels are [n, K] with NaN where one is missing; of one of kind tokens [n, W], as codes.
    """
    for target, own, columns in zip(targets, LabelLayout.of(targets).columns, layout.columns, strict=True):
        present = mask[:, own].any(1)
        known = as_judged(target, np.where(mask[present, own], labels[present, own].astype(np.float64), np.nan))
        yield target, known, predictions(outputs[present], target, columns)


def as_judged(target: Target, labels: Array) -> Array:
    """Encoded labels [n, L], NaN where missing, as the task's metrics take them."""
    if target.kind == "multilabel":
        return labels
    if target.kind == "tokens":
        return label_codes(target)[np.where(np.isnan(labels), -1, labels).astype(np.int64)]
    return target.decode(labels[:, 0]) if target.kind == "regression" else labels[:, 0]


def evaluate(
    outputs: Array,
    labels: Array,
    mask: NDArray[np.bool_],
    targets: Sequence[Target],
    layout: HeadLayout,
    study: Study | None = None,
) -> dict[str, float]:
    """Metrics as `task/metric` of outputs [N, O] against labels and mask [N, L].

    With `study`, those of `Study.watched`, as after every epoch; otherwise all that the task's kind has. A metric that
    the labels do not define (ROC-AUC with one class present) is NaN.
    """
    values: dict[str, float] = {}
    for target, known, predicted in labelled(outputs, labels, mask, targets, layout):
        chosen = study.watched(target.task) if study else METRICS[target.kind]
        for name in chosen:
            values[f"{target.task}/{name}"] = _defined(METRICS[target.kind][name], known, predicted)
    return values


def _defined(metric: Metric, labels: Array, predicted: Array) -> float:
    if len(labels) == 0 or not np.isfinite(predicted).all():
        return math.nan
    return metric(labels, predicted)


def is_better(metric: str, value: float, than: float) -> bool:
    return value < than if metric in LOWER_IS_BETTER else value > than
