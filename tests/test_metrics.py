"""Metrics against torchmetrics, an independent implementation, and against definitions worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional as reference
from helpers_training import make_study

from polyshot.data.targets import Target
from polyshot.models.heads import HeadLayout
from polyshot.training.metrics import METRICS, evaluate, is_better, predictions

RANDOM = np.random.default_rng(3)
LABELS = (RANDOM.random(97) < 0.3).astype(float)
SCORES = np.clip(0.3 * LABELS + 0.7 * RANDOM.random(97), 0, 1).round(1)  # rounded, so that many are tied
CLASSES = RANDOM.integers(0, 4, 97).astype(float)
PROBABILITIES = RANDOM.dirichlet(np.ones(4), 97) * 0.7 + 0.3 * np.eye(4)[CLASSES.astype(int)]
NUMBERS, GUESSES = RANDOM.normal(50, 10, 97), RANDOM.normal(50, 10, 97)


def _torch(metric, predicted, labels, **options):
    return metric(torch.as_tensor(predicted), torch.as_tensor(labels), **options).item()


def _whole(labels):
    return torch.as_tensor(labels).long()


FOUR = {"task": "multiclass", "num_classes": 4}
EXPECTED = {
    ("regression", "rmse"): lambda: _torch(reference.mean_squared_error, GUESSES, NUMBERS, squared=False),
    ("regression", "mae"): lambda: _torch(reference.mean_absolute_error, GUESSES, NUMBERS),
    ("regression", "r2"): lambda: _torch(reference.r2_score, GUESSES, NUMBERS),
    ("binary", "roc_auc"): lambda: _torch(reference.auroc, SCORES, _whole(LABELS), task="binary"),
    ("binary", "average_precision"): lambda: _torch(reference.average_precision, SCORES, _whole(LABELS), task="binary"),
    ("binary", "accuracy"): lambda: _torch(reference.accuracy, SCORES, _whole(LABELS), task="binary"),
    ("binary", "balanced_accuracy"): lambda: _torch(
        reference.accuracy, SCORES > 0.5, _whole(LABELS), task="multiclass", num_classes=2, average="macro"
    ),
    ("binary", "f1"): lambda: _torch(reference.f1_score, SCORES, _whole(LABELS), task="binary"),
    ("binary", "precision"): lambda: _torch(reference.precision, SCORES, _whole(LABELS), task="binary"),
    ("binary", "recall"): lambda: _torch(reference.recall, SCORES, _whole(LABELS), task="binary"),
    ("binary", "log_loss"): lambda: torch.nn.functional.binary_cross_entropy(
        torch.as_tensor(SCORES).clamp(2.3e-16, 1 - 2.3e-16), torch.as_tensor(LABELS)
    ).item(),
    ("multiclass", "accuracy"): lambda: _torch(
        reference.accuracy, PROBABILITIES, _whole(CLASSES), average="micro", **FOUR
    ),
    ("multiclass", "balanced_accuracy"): lambda: _torch(
        reference.accuracy, PROBABILITIES, _whole(CLASSES), average="macro", **FOUR
    ),
    ("multiclass", "f1"): lambda: _torch(reference.f1_score, PROBABILITIES, _whole(CLASSES), average="macro", **FOUR),
    ("multiclass", "log_loss"): lambda: torch.nn.functional.nll_loss(
        torch.as_tensor(PROBABILITIES).log(), _whole(CLASSES)
    ).item(),
}
SEVERAL = np.where(RANDOM.random((97, 3)) < 0.3, np.nan, RANDOM.random((97, 3)) < [0.1, 0.3, 0.6])
SEVERAL_SCORES = np.clip(np.nan_to_num(0.2 * SEVERAL) + 0.8 * RANDOM.random((97, 3)), 0, 1).round(1)
GIVEN = {
    "regression": (NUMBERS, GUESSES),
    "binary": (LABELS, SCORES),
    "multiclass": (CLASSES, PROBABILITIES),
    "multilabel": (SEVERAL, SEVERAL_SCORES),
}
MACRO = {"task": "multilabel", "num_labels": 3, "average": "macro", "ignore_index": -1}
EXPECTED |= {
    ("multilabel", name): lambda metric=metric: _torch(
        metric, SEVERAL_SCORES, _whole(np.nan_to_num(SEVERAL, nan=-1)), **MACRO
    )
    for name, metric in {
        "roc_auc": reference.auroc,
        "average_precision": reference.average_precision,
        "accuracy": reference.accuracy,
        "f1": reference.f1_score,
        "precision": reference.precision,
        "recall": reference.recall,
    }.items()
}
EXPECTED |= {
    ("multilabel", name): lambda name=name: np.mean(
        [
            METRICS["binary"][name](labels[~np.isnan(labels)], scores[~np.isnan(labels)])
            for labels, scores in zip(SEVERAL.T, SEVERAL_SCORES.T, strict=True)
        ]
    )
    for name in ("balanced_accuracy", "log_loss")
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in GIVEN for name in METRICS[kind]])
def test_a_metric_is_what_torchmetrics_says(kind, name):
    assert METRICS[kind][name](*GIVEN[kind]) == pytest.approx(EXPECTED[kind, name](), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "labels", "predicted", "value"),
    [
        ("binary", "roc_auc", [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75),
        ("binary", "roc_auc", [0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], 0.5),
        ("binary", "average_precision", [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.5 * 1 + 0.5 * 2 / 3),
        ("binary", "average_precision", [0, 1, 0, 0], [0.5, 0.5, 0.5, 0.5], 0.25),
        ("binary", "f1", [1, 1, 0, 0], [0.9, 0.1, 0.9, 0.1], 0.5),
        ("binary", "f1", [0, 0], [0.1, 0.2], 0.0),
        ("binary", "precision", [1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], 0.0),
        ("binary", "recall", [0, 0], [0.9, 0.2], 0.0),
        ("binary", "balanced_accuracy", [1, 0, 0, 0], [0.9, 0.9, 0.1, 0.1], (1 + 2 / 3) / 2),
        ("multiclass", "balanced_accuracy", [0, 0, 2], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0.75),
        ("multiclass", "f1", [0, 0, 2], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], (2 / 3 + 0 + 1) / 3),
        ("regression", "r2", [1.0, 2.0, 3.0], [1.0, 2.0, 4.0], 0.5),
        ("regression", "rmse", [0.0, 0.0], [3.0, 4.0], math.sqrt(12.5)),
    ],
)
def test_a_metric_by_hand(kind, name, labels, predicted, value):
    assert METRICS[kind][name](np.array(labels, dtype=float), np.array(predicted, dtype=float)) == pytest.approx(value)


def test_a_label_that_does_not_define_a_metric_is_left_out_of_its_mean():
    labels = np.array([[0, 0, np.nan], [1, 0, np.nan], [0, 0, np.nan], [1, 0, np.nan]])
    scores = np.array([[0.1, 0.2, 0.3], [0.35, 0.9, 0.1], [0.4, 0.1, 0.5], [0.8, 0.4, 0.5]])
    assert METRICS["multilabel"]["roc_auc"](labels, scores) == 0.75  # the first alone
    assert METRICS["multilabel"]["accuracy"](labels, scores) == (0.75 + 0.75) / 2  # the first two
    assert math.isnan(METRICS["multilabel"]["roc_auc"](labels[:, 1:], scores[:, 1:]))


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
@pytest.mark.parametrize("only", [0.0, 1.0])
def test_ranking_is_undefined_where_one_class_is_all_there_is(name, only):
    assert math.isnan(METRICS["binary"][name](np.full(3, only), np.array([0.1, 0.5, 0.9])))


def test_r2_is_undefined_for_constant_labels():
    assert math.isnan(METRICS["regression"]["r2"](np.ones(3), np.array([0.0, 1.0, 2.0])))


def test_a_regression_is_reported_in_its_own_units():
    target = Target("price", "regression", "price", mean=100.0, scale=20.0)
    study = make_study({"tasks.price.metric": "mae"}, {"price": {"kind": "regression"}})
    values = evaluate(
        np.array([[0.0], [1.0]]), np.zeros((2, 1)), np.ones((2, 1), bool), [target], HeadLayout.of([target]), study
    )
    assert values == {"price/mae": pytest.approx(10.0)}  # predicted 100 and 120 where 100 is right
    assert predictions(np.array([[1.5]]), target, slice(0, 1)) == pytest.approx([130.0])


def test_rows_without_a_label_do_not_count():
    study = make_study()
    targets = [
        Target("price", "regression", "price"),
        Target("sold", "binary", "sold", classes=["no", "yes"]),
        Target("region", "multiclass", "region", classes=["a", "b", "c"]),
    ]
    outputs, labels = RANDOM.normal(size=(40, 5)), RANDOM.integers(0, 2, (40, 3)).astype(float)
    mask = RANDOM.random((40, 3)) < 0.6
    layout = HeadLayout.of(targets)
    values = evaluate(outputs, labels, mask, targets, layout)
    assert set(values) == {f"{task}/{metric}" for task, t in study.tasks.items() for metric in METRICS[t.kind]}
    for column, target in enumerate(targets):
        rows = mask[:, column]
        alone = evaluate(outputs[rows], labels[rows], mask[rows], targets, layout)
        assert {k: v for k, v in alone.items() if k.startswith(target.task)} == {
            k: v for k, v in values.items() if k.startswith(target.task)
        }


def test_predictions_that_are_no_numbers_and_labels_that_are_not_there_give_no_metric():
    target = Target("price", "regression", "price")
    layout = HeadLayout.of([target])
    values = evaluate(np.array([[np.nan], [1.0]]), np.zeros((2, 1)), np.ones((2, 1), bool), [target], layout)
    assert all(map(math.isnan, values.values()))
    values = evaluate(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1), bool), [target], layout)
    assert all(map(math.isnan, values.values()))


def test_extreme_outputs_stay_probabilities():
    binary = Target("sold", "binary", "sold", classes=["no", "yes"])
    assert predictions(np.array([[-1e4], [1e4]]), binary, slice(0, 1)) == pytest.approx([0, 1])
    multiclass = Target("region", "multiclass", "region", classes=["a", "b", "c"])
    assert predictions(np.array([[1e4, 0, -1e4]]), multiclass, slice(0, 3)) == pytest.approx(np.array([[1, 0, 0]]))


def test_better_depends_on_the_metric():
    assert is_better("rmse", 1.0, 2.0)
    assert is_better("roc_auc", 0.9, 0.8)
    assert not is_better("roc_auc", math.nan, 0.8)
    assert not is_better("log_loss", 0.5, 0.5)
