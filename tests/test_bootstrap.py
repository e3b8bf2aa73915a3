"""Intervals of the improvement: each metric under counts is that of repeated rows, and the verdicts are right."""

from __future__ import annotations

import numpy as np
import pytest

from polyshot.training.bootstrap import Interval, Pair, paired_intervals
from polyshot.training.improvement import relative_improvement
from polyshot.training.metrics import METRICS
from polyshot.training.weighted_metrics import weighted_metric

EVERY_METRIC = [(kind, metric) for kind, metrics in METRICS.items() for metric in metrics]


def predicted_rows(kind: str, rows: int, seed: int = 0, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that are better than chance."""
    random = np.random.default_rng(seed)
    if kind == "regression":
        labels = random.normal(500, 40, rows)
        return labels, labels + random.normal(0, 20, rows)
    if kind == "binary":
        labels = (random.random(rows) < 0.4).astype(float)
        scores = 1 / (1 + np.exp(-(labels - 0.5) - random.normal(0, 1, rows)))
        return labels, scores.round(1) if ties else scores
    if kind == "multilabel":
        columns = [predicted_rows("binary", rows, seed + label, ties) for label in range(3)]
        labels, scores = (np.stack(parts, 1) for parts in zip(*columns, strict=True))
        return np.where(random.random(labels.shape) < [0, 0.3, 0.9], np.nan, labels), scores
    if kind == "tokens":  # codes of words, NaN behind the last one of a row
        labels = random.integers(0, 5, (rows, 6)).astype(float)
        decided = np.where(random.random(labels.shape) < 0.6, labels, random.integers(0, 5, labels.shape))
        labels[np.arange(6) >= random.integers(2, 7, rows)[:, None]] = np.nan
        return labels, decided
    labels = random.integers(0, 4, rows).astype(float)
    scores = random.random((rows, 4)) + np.eye(4)[labels.astype(int)] * 0.3
    return labels, scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize(("kind", "metric"), EVERY_METRIC)
def test_a_metric_under_counts_is_the_metric_of_the_repeated_rows(kind, metric, ties):
    labels, predicted = predicted_rows(kind, 37, ties=ties)
    counts = np.random.default_rng(1).multinomial(37, np.full(37, 1 / 37), size=50).T
    repeated = [
        METRICS[kind][metric](labels.repeat(times, axis=0), predicted.repeat(times, axis=0)) for times in counts.T
    ]
    assert len(set(repeated)) > 10
    found = weighted_metric(kind, metric, labels, predicted, counts.astype(float))
    np.testing.assert_allclose(found, repeated, rtol=1e-9)


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "f1", "precision", "recall", "balanced_accuracy"])
def test_a_resample_of_one_class_defines_as_much_as_such_rows_do(metric):
    labels, scores = predicted_rows("binary", 12)
    counts = np.stack([labels, 1 - labels, np.ones(12)], 1)
    plain = [METRICS["binary"][metric](labels.repeat(times), scores.repeat(times)) for times in counts.T.astype(int)]
    np.testing.assert_allclose(weighted_metric("binary", metric, labels, scores, counts), plain)


def test_a_metric_without_a_weighted_form_is_computed_row_by_row(monkeypatch):
    monkeypatch.setitem(
        METRICS["regression"], "worst", lambda labels, predicted: float(np.abs(labels - predicted).max())
    )
    counts = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = weighted_metric("regression", "worst", np.zeros(3), np.array([5.0, 1.0, 2.0]), counts)
    assert found.tolist() == [5.0, 2.0]


def pair(task: str, gain: float, rows: int = 800, seed: int = 0, noise: float = 1.0) -> Pair:
    """A regression task whose errors are smaller by `gain` when it is learnt with others; half of them are shared."""
    random = np.random.default_rng(seed)
    labels, common = random.normal(size=rows), random.normal(0, noise, rows)
    alone = labels + common + random.normal(0, noise, rows)
    together = labels + (common + random.normal(0, noise, rows)) * (1 - gain)
    return Pair(task, "regression", "rmse", np.ones(rows, dtype=bool), labels, together, alone)


def test_verdicts_tell_help_and_hurt_from_noise():
    found = paired_intervals([pair("better", 0.3), pair("worse", -0.3, seed=1), pair("alike", 0.0, seed=2)], None, 0)
    assert {task: interval.verdict for task, interval in found.tasks.items()} == {
        "better": "helped",
        "worse": "hurt",
        "alike": "within noise",
    }
    assert found.tasks["better"].low < 0.3 < found.tasks["better"].high


def test_intervals_are_those_of_resampling_by_hand_and_the_same_for_the_same_seed():
    one = pair("t", 0.1)
    found = paired_intervals([one], None, 3)
    assert paired_intervals([one], None, 3) == found != paired_intervals([one], None, 4)
    random, changes, rmse = np.random.default_rng(9), [], METRICS["regression"]["rmse"]
    for _ in range(4000):
        rows = random.integers(800, size=800)
        values = [rmse(one.labels[rows], predicted[rows]) for predicted in (one.together, one.alone)]
        changes.append(relative_improvement("rmse", *values))
    width = np.ptp(np.quantile(changes, [0.025, 0.975]))
    np.testing.assert_allclose(found.tasks["t"].ends, np.quantile(changes, [0.025, 0.975]), atol=0.08 * width)


def test_pairing_makes_intervals_narrower_than_the_models_apart():
    one = pair("t", 0.1)
    shuffled = np.random.default_rng(0).permutation(800)
    apart = Pair("t", "regression", "rmse", one.known, one.labels[shuffled] * 0, (one.together - one.labels)[shuffled],
                 one.alone - one.labels)  # fmt: skip
    paired, unpaired = (np.ptp(paired_intervals([p], None, 0).tasks["t"].ends) for p in (one, apart))
    assert paired < 0.9 * unpaired


def test_a_true_interval_covers_as_often_as_it_says():
    hits = 0
    for seed in range(120):
        low, high = paired_intervals([pair("t", 0.05, rows=200, seed=seed)], None, 0).tasks["t"].ends
        hits += low <= 0.05 <= high
    assert 0.87 <= hits / 120 <= 0.995


def test_groups_are_drawn_whole():
    """Ten copies of each row in a group say no more than one: the interval is that of the rows without copies."""
    few = pair("t", 0.1, rows=100)
    many = Pair("t", "regression", "rmse", np.ones(1000, bool), *(
        values.repeat(10) for values in (few.labels, few.together, few.alone)
    ))  # fmt: skip
    plain, grouped = paired_intervals([few], None, 0), paired_intervals([many], np.repeat(np.arange(100) + 7, 10), 0)
    np.testing.assert_allclose(grouped.tasks["t"].ends, plain.tasks["t"].ends, rtol=1e-9)
    as_if_independent = paired_intervals([many], None, 0)
    assert np.ptp(as_if_independent.tasks["t"].ends) < 0.5 * np.ptp(grouped.tasks["t"].ends)


def test_one_group_or_one_class_says_nothing():
    assert paired_intervals([pair("t", 0.3)], np.zeros(800, dtype=int), 0).tasks["t"].verdict == "unknown"
    labels = np.zeros(6)
    labels[0] = 1  # a third of the resamples have no positive row
    binary = Pair("t", "binary", "roc_auc", np.ones(6, bool), labels, np.linspace(0, 1, 6), np.linspace(1, 0, 6))
    assert paired_intervals([binary], None, 0).delta_m.verdict == "unknown"


def test_delta_m_of_tasks_that_err_together_is_less_sure_than_that_of_independent_ones():
    one = pair("a", 0.1)
    twice = paired_intervals([one, one], None, 0)
    assert twice.delta_m == twice.tasks["a"]
    independent = paired_intervals([one, pair("b", 0.1, seed=5)], None, 0)
    assert np.ptp(independent.delta_m.ends) < 0.85 * np.ptp(twice.delta_m.ends)


def test_rows_without_a_label_take_no_part():
    one = pair("t", 0.1, rows=400)
    known = np.random.default_rng(2).random(400) < 0.5
    masked = Pair("t", "regression", "rmse", known, one.labels[known], one.together[known], one.alone[known])
    low, high = paired_intervals([masked], None, 0).tasks["t"].ends
    rmse = METRICS["regression"]["rmse"]
    change = relative_improvement("rmse", rmse(masked.labels, masked.together), rmse(masked.labels, masked.alone))
    assert low < change < high


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "helped"), (-0.2, -0.01, "hurt"), (-0.1, 0.1, "within noise"), (np.nan, np.nan, "unknown")],
)
def test_a_verdict_is_where_the_interval_lies(low, high, verdict):
    assert Interval(low, high).verdict == verdict
