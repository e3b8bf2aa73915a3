"""Every metric on many resamples of the same rows at once, from how often each resample has each row.

The bootstrap asks for them. They are the metrics of `training.metrics` with weighted sums in the place of sums: one
matrix product, or one sort and cumulative sums, stands for a thousand evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from polyshot.training.entities import entity_counts
from polyshot.training.metrics import ENTITY_SCORES, METRICS, Array, ratio

Counts = NDArray[np.float64]  # [n, R]: how often row n is in resample R


def weighted_metric(kind: str, metric: str, labels: Array, predicted: Array, counts: Counts) -> Array:
    """A metric [R] of the resamples that `counts` [n, R] describes; NaN where a resample does not define it.

    A metric without a weighted form here is computed on the rows of one resample after another.
    """
    if not np.isfinite(predicted).all():
        return np.full(counts.shape[1], np.nan)
    form = _FORMS.get((kind, metric))
    if form is None:
        plain = METRICS[kind][metric]
        times = counts.T.astype(np.int64)
        return np.array([plain(labels.repeat(of_row, axis=0), predicted.repeat(of_row, axis=0)) for of_row in times])
    with np.errstate(divide="ignore", invalid="ignore"):
        return form(labels, predicted, counts)


def _mean(values: NDArray, counts: Counts) -> Array:
    return values.astype(np.float64) @ counts / counts.sum(0)


# --- regression ------------------------------------------------------------------------------------------------------


def _r2(labels: Array, predicted: Array, counts: Counts) -> Array:
    centred = labels - labels.mean()  # or else the difference of two large numbers would be taken
    squares = centred**2 @ counts
    spread = squares - (centred @ counts) ** 2 / counts.sum(0)
    spread[spread <= 1e-12 * squares] = np.nan
    return 1 - (labels - predicted) ** 2 @ counts / spread


# --- ranking ---------------------------------------------------------------------------------------------------------


def _cumulative(scores: Array, counts: Counts) -> tuple[Array, Counts]:
    """The scores [n] in ascending order, and how many rows each resample has among the first 0, 1, ... n [n + 1, R]."""
    order = np.argsort(scores)
    seen = np.zeros((len(scores) + 1, counts.shape[1]))
    np.cumsum(counts[order], 0, out=seen[1:])
    return scores[order], seen


def _roc_auc(labels: Array, scores: Array, counts: Counts) -> Array:
    positive = labels == 1
    of_negatives, seen = _cumulative(scores[~positive], counts[~positive])
    first, last = (np.searchsorted(of_negatives, scores[positive], side) for side in ("left", "right"))
    below = seen[first]
    if (first != last).any():
        below = (below + seen[last]) / 2
    counts = counts[positive]
    return np.einsum("nr,nr->r", counts, below) / (counts.sum(0) * seen[-1])


def _average_precision(labels: Array, scores: Array, counts: Counts) -> Array:
    positive = labels == 1
    thresholds = scores[positive]

    def at_threshold(rows: NDArray[np.bool_]) -> Counts:
        ordered, seen = _cumulative(scores[rows], counts[rows])
        return seen[-1] - seen[np.searchsorted(ordered, thresholds)]

    found, wrong = at_threshold(positive), at_threshold(~positive)
    precision = np.divide(found, found + wrong, out=np.zeros_like(found), where=found + wrong > 0)
    counts, there = counts[positive], counts[~positive].sum(0) > 0
    return np.where(there, np.einsum("nr,nr->r", counts, precision) / counts.sum(0), np.nan)


# --- decisions -------------------------------------------------------------------------------------------------------


def _balanced_accuracy(labels: Array, decided: NDArray, counts: Counts) -> Array:
    of_class = labels == np.unique(labels)[:, None]  # [C, n]
    there = of_class.astype(np.float64) @ counts  # [C, R]
    hits = (of_class & (labels == decided)).astype(np.float64) @ counts
    recall = np.divide(hits, there, out=np.zeros_like(hits), where=there > 0)
    return recall.sum(0) / (there > 0).sum(0)


def _f1(labels: Array, decided: NDArray, counts: Counts, classes: NDArray) -> Array:
    """The mean F1 score of those `classes` [C] that a resample has or decides for; 0 where there is none."""
    of_class, as_class = labels == classes[:, None], decided == classes[:, None]
    hits = (of_class & as_class).astype(np.float64) @ counts
    total = (of_class.astype(np.float64) + as_class) @ counts
    scores = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return scores.sum(0) / np.maximum(1, (total > 0).sum(0))


def _share(part: NDArray, whole: NDArray, counts: Counts) -> Array:
    """Of the rows in `whole` [n] how many are in `part` [n] as well; 0 where there are none."""
    return ratio((part & whole).astype(np.float64) @ counts, whole.astype(np.float64) @ counts)


def _log_loss(labels: Array, probabilities: Array, counts: Counts) -> Array:
    of_label = probabilities[np.arange(len(labels)), labels.astype(np.int64)]
    return _mean(-np.log(np.clip(of_label, np.finfo(np.float64).eps, 1)), counts)


def _macro_f1(labels: Array, scores: Array, counts: Counts) -> Array:
    decided = scores.argmax(1)
    return _f1(labels, decided, counts, np.union1d(labels, decided))


# --- several labels --------------------------------------------------------------------------------------------------


def _macro(form: Callable[[Array, Array, Counts], Array]) -> Callable[[Array, Array, Counts], Array]:
    """The mean over labels of a binary metric, of those labels that a resample defines it for."""

    def over_labels(labels: Array, scores: Array, counts: Counts) -> Array:
        of_labels = np.full((labels.shape[1], counts.shape[1]), np.nan)
        for values, own, of_label in zip(of_labels, labels.T, scores.T, strict=True):
            known = ~np.isnan(own)
            there = counts[known].any(0)
            values[there] = form(own[known], of_label[known], counts[known][:, there])
        defined = np.isfinite(of_labels)
        return np.where(defined, of_labels, 0).sum(0) / defined.sum(0)

    return over_labels


# --- words ------------------------------------------------------------------------------------------------------------


def _entities(labels: Array, decided: Array, counts: Counts, metric: str) -> Array:
    return ENTITY_SCORES[metric](entity_counts(labels, decided).T @ counts)


def _word_accuracy(labels: Array, decided: Array, counts: Counts) -> Array:
    there = ~np.isnan(labels)
    return ((labels == decided) & there).sum(1) @ counts / (there.sum(1) @ counts)


_FORMS: dict[tuple[str, str], Callable[[Array, Array, Counts], Array]] = {
    ("regression", "rmse"): lambda labels, predicted, counts: np.sqrt(_mean((labels - predicted) ** 2, counts)),
    ("regression", "mae"): lambda labels, predicted, counts: _mean(np.abs(labels - predicted), counts),
    ("regression", "r2"): _r2,
    ("binary", "roc_auc"): _roc_auc,
    ("binary", "average_precision"): _average_precision,
    ("binary", "accuracy"): lambda labels, scores, counts: _mean(labels == (scores > 0.5), counts),
    ("binary", "balanced_accuracy"): lambda labels, scores, counts: _balanced_accuracy(labels, scores > 0.5, counts),
    ("binary", "f1"): lambda labels, scores, counts: _f1(labels, scores > 0.5, counts, np.ones(1)),
    ("binary", "precision"): lambda labels, scores, counts: _share(labels == 1, scores > 0.5, counts),
    ("binary", "recall"): lambda labels, scores, counts: _share(scores > 0.5, labels == 1, counts),
    ("binary", "log_loss"): lambda labels, scores, counts: _log_loss(labels, np.stack([1 - scores, scores], 1), counts),
    ("multiclass", "accuracy"): lambda labels, scores, counts: _mean(labels == scores.argmax(1), counts),
    ("multiclass", "balanced_accuracy"): lambda labels, scores, counts: _balanced_accuracy(
        labels, scores.argmax(1), counts
    ),
    ("multiclass", "f1"): _macro_f1,
    **{("tokens", metric): partial(_entities, metric=metric) for metric in ENTITY_SCORES},
    ("tokens", "accuracy"): _word_accuracy,
    ("multiclass", "log_loss"): _log_loss,
}
_FORMS |= {("multilabel", metric): _macro(form) for (kind, metric), form in _FORMS.items() if kind == "binary"}
