"""How sure an improvement is: intervals of it, and the verdict whether learning together helped a task or hurt it.

A paired bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13): rows of a split
are drawn again with replacement, 1,000 times, and both models are evaluated on the same draw, so that what makes a row
hard for both cancels out. The interval holds the middle 95 % of the improvements (the percentile interval). Where rows
belong to groups, whole groups are drawn, since rows of one group are not independent. All tasks are evaluated on the
same draws, so that Δm's interval knows how they vary together.

The interval is about the rows: what other test rows of the same kind would show of these two trained models. It does
not know what another seed of the training would have given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polyshot.data.prepare import Prepared
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.training.baselines import Baseline
from polyshot.training.improvement import relative_improvements
from polyshot.training.loop import TrainingRun
from polyshot.training.metrics import Array, labelled, predictions
from polyshot.training.weighted_metrics import Counts, weighted_metric

RESAMPLES = 1000
CONFIDENCE = 0.95
_DEFINED = 0.9  # share of the resamples that must define a metric (ROC-AUC needs both classes) for an interval
_COUNTS_AT_ONCE = 4_000_000  # bounds the memory of large tables

Verdict = Literal["helped", "hurt", "within noise", "unknown"]


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of an improvement's bootstrap distribution, as fractions; NaN where there is none."""

    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def verdict(self) -> Verdict:
        """Helped or hurt where zero is outside of the interval."""
        if self.low != self.low:
            return "unknown"
        return "helped" if self.low > 0 else "hurt" if self.high < 0 else "within noise"


@dataclass(frozen=True)
class Intervals:
    """Of the improvement on one split: of each task, and of their mean Δm."""

    tasks: dict[str, Interval]
    delta_m: Interval


@dataclass(frozen=True)
class Pair:
    """One task's predictions by two models for the same rows, as its metric takes them.

    Attributes:
        known: [N], which of the split's rows have the label; the others are for these n rows.
        labels: [n], or [n, K] of a multilabel task.
        together, alone: [n], or [n, C] of a multiclass task, or [n, K].
    """

    task: str
    kind: str
    metric: str
    known: NDArray[np.bool_]
    labels: Array
    together: Array
    alone: Array

    def improvements(self, counts: Counts) -> Array:
        """[R], of the resamples that `counts` [N, R] describes."""
        counts = counts[self.known]
        together, alone = (
            weighted_metric(self.kind, self.metric, self.labels, predicted, counts)
            for predicted in (self.together, self.alone)
        )
        return relative_improvements(self.metric, together, alone)


def improvement_intervals(
    study: Study, prepared: Prepared, run: TrainingRun, baselines: Mapping[str, Baseline]
) -> dict[str, Intervals]:
    """Intervals of the improvement of `run`'s best epoch over its single-task baselines, on validation and on test."""
    intervals = {}
    for split, examples in (("validation", prepared.validation), ("test", prepared.test)):
        mask, outputs = examples.mask.numpy(), run.best_outputs(examples)
        labelled_rows = prepared.labels.labelled(examples.mask).numpy()  # [N, T]
        known = labelled(outputs, examples.targets.numpy(), mask, prepared.targets, run.model.layout)
        pairs = [
            Pair(
                target.task,
                target.kind,
                study.tasks[target.task].metric,
                labelled_rows[:, place],
                labels,
                predicted,
                predictions(baselines[target.task].outputs[split], target, slice(0, target.outputs)),
            )
            for place, (target, labels, predicted) in enumerate(known)
        ]
        seed = derive_seed(study.seed, "bootstrap", split)
        intervals[split] = paired_intervals(pairs, prepared.groups.get(split), seed)
    return intervals


def paired_intervals(pairs: Sequence[Pair], groups: NDArray[np.int64] | None, seed: int) -> Intervals:
    """Intervals of the improvement of each task, and of their mean.

    Args:
        groups: [N], the group of each row of the split, or None where rows are independent.
    """
    changes = np.full((len(pairs), RESAMPLES), np.nan)
    for resamples, counts in draws(len(pairs[0].known), groups, seed):
        for place, pair in enumerate(pairs):
            changes[place, resamples] = pair.improvements(counts)
    return Intervals(
        {pair.task: _interval(row) for pair, row in zip(pairs, changes, strict=True)}, _interval(changes.mean(0))
    )


def draws(rows: int, groups: NDArray[np.int64] | None, seed: int) -> Iterator[tuple[slice, Counts]]:
    """The resamples, some at a time: which of them, and how often each has each row [N, r].

    None where there is one row or one group: it is drawn every time, which says nothing of any other.
    """
    random = np.random.default_rng(seed)
    units, unit_of_row = rows, None
    if groups is not None:
        found, unit_of_row = np.unique(groups, return_inverse=True)
        units = len(found)
    if units < 2:
        return
    at_once = max(1, _COUNTS_AT_ONCE // rows)
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn = random.integers(units, size=(units, size)) * size + np.arange(size)
        counts = np.bincount(drawn.ravel(), minlength=units * size).reshape(units, size).astype(np.float64)
        yield slice(start, start + size), counts if unit_of_row is None else counts[unit_of_row]


def _interval(changes: NDArray[np.float64]) -> Interval:
    defined = changes[np.isfinite(changes)]
    if len(defined) < _DEFINED * len(changes):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
