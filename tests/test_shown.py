"""Results read well at a prompt and in a notebook."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polyshot.verbs.affinity import AffinityResult
from polyshot.verbs.meta import MetaResult
from polyshot.verbs.train import TrainResult
from polyshot.verbs.transfer import TransferResult


def trained() -> TrainResult:
    rows = [
        {"split": "test", "task": "price", "metric": "rmse", "single_task": 2.0, "multi_task": 1.0, "improvement": 0.5},
        {"split": "test", "task": "a<b", "metric": "rmse", "single_task": 1.0, "multi_task": 1.1, "improvement": -0.1},
    ]
    metrics = pd.DataFrame(rows).assign(low=[0.4, -0.2], high=[0.6, -0.05], verdict=["helped", "hurt"])
    return TrainResult(metrics, 0.2, (0.1, 0.3), ["a<b"], pd.DataFrame(), Path("runs/train-1"), None)


def test_a_training_says_its_verdict_before_its_table():
    assert repr(trained()).splitlines()[:4] == [
        "Δm on test: +20.00 % over learning each task alone (95 % interval +10.00 % to +30.00 %, over test rows).",
        "Better than alone: price.",
        "Worse than alone (negative transfer): a<b.",
        "The model and all else is in runs/train-1.",
    ]
    assert "price   rmse" in repr(trained())


def test_in_a_notebook_it_is_html_in_which_names_are_text():
    page = trained()._repr_html_()
    assert page.count("<table") == 1
    assert "<p>Worse than alone (negative transfer): a&lt;b.</p>" in page
    assert "a<b" not in page


def test_meta_learning_is_set_beside_each_baseline_in_words():
    verdicts = pd.DataFrame(
        {"method": ["ridge", "scratch", "mean"], "difference": [0.2, -0.2, 0.1], "interval": [0.1, 0.1, 0.2]}
    )
    words = repr(MetaResult(pd.DataFrame({"method": ["meta-learnt"]}), verdicts, pd.DataFrame(), Path("r"), None))
    assert "better than ridge (difference +0.1 to +0.3" in words
    assert "worse than scratch (difference -0.3 to -0.1" in words
    assert "within noise of mean" in words


def test_transfer_and_affinity_say_what_to_do():
    columns = ["task", "labels", "method", "metric", "value", "difference", "difference_low", "difference_high"]
    table = pd.DataFrame([["y", 10, "l2_sp", "rmse", 1.0, 0.1, 0.0, 0.2]], columns=columns).assign(verdict="helped")
    assert "Recommended with 10 labels: l2_sp." in repr(
        TransferResult(table, {"10": "l2_sp"}, "l2_sp", Path("r"), None)
    )
    groups = pd.DataFrame({"tasks": [["a", "b"]], "serves": [["a"]], "predicted": [[0.1]]})
    matrix = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], index=["a", "b"], columns=["a", "b"])
    assert "A network of a, b serves a." in repr(AffinityResult("gradients", matrix, None, groups, [], Path("r"), None))
