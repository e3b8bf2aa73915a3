"""A task of several labels, each there, not there or unknown, beside tasks of other kinds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import learnable_table
from helpers_training import make_prepared, make_study
from sklearn.metrics import roc_auc_score

from polyshot.affinities.lookahead import lookahead_affinity
from polyshot.affinities.subsets import of_tasks
from polyshot.data.prepare import Prepared, prepare
from polyshot.models.heads import HeadLayout
from polyshot.saved_model import SavedModel, save_model
from polyshot.study import Study
from polyshot.training.baselines import train_baselines
from polyshot.training.bootstrap import improvement_intervals
from polyshot.training.loop import TrainingRun
from polyshot.training.losses import TaskLosses

LABELS = ["large", "old", "dear"]
STUDY = Study.from_dict(
    {
        "name": "houses",
        "data": {"source": "houses.csv", "ignore": ["street"]},
        "tasks": {
            "price": {"kind": "regression"},
            "tags": {"kind": "multilabel", "target": LABELS},
            "town": {"kind": "multiclass"},
        },
        "model": {"encoder": {"width": 16, "depth": 2}},
        "training": {
            "epochs": 6,
            "batch_size": 32,
            "optimiser": {"learning_rate": 1e-2},
            "early_stopping": None,
        },
        "scale": {"device": "cpu"},
    }
)


def houses() -> pd.DataFrame:
    """A numeric target, three labels that are written in three ways and often unknown, and three towns."""
    table, random = learnable_table(), np.random.default_rng(1)
    signs = {
        "large": (table["size"] > 110, [0, 1]),
        "old": (table["age"] > 60, ["no", "yes"]),
        "dear": (table.pop("sold") == "yes", [False, True]),
    }
    for label, (there, words) in signs.items():
        table[label] = pd.Series(np.array(words, dtype=object)[there.astype(int)])
        table.loc[random.random(len(table)) < 0.2, label] = None
    table.loc[random.random(len(table)) < 0.05, LABELS] = None
    return table


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(STUDY, houses())


def trained(study: Study, prepared: Prepared) -> TrainingRun:
    run = TrainingRun(study, prepared)
    for _ in run.epochs():
        pass
    return run


def test_each_label_has_a_column_and_a_mask_of_its_own(prepared):
    table = houses()
    assert prepared.labels.columns == (slice(0, 1), slice(1, 4), slice(4, 5))
    rows, examples = prepared.rows["train"], prepared.train
    for place, label in enumerate(LABELS, start=1):
        known = table[label].notna().to_numpy()[rows]
        np.testing.assert_array_equal(examples.mask[:, place], known)
        there = table[label].isin([1, "yes", True]).to_numpy()[rows]
        np.testing.assert_array_equal(examples.targets[:, place], there & known)
    some = examples.mask[:, 1:4].any(1)
    assert torch.equal(prepared.labels.labelled(examples.mask)[:, 1], some)
    alone = prepared.for_task("tags")
    assert len(alone.train) == int(some.sum()) < len(examples)
    assert torch.equal(alone.train.mask, examples.mask[some, 1:4])


def test_splits_keep_the_proportions_of_the_combinations_of_labels():
    random = np.random.default_rng(0)
    first = random.random(400) < 0.1
    table = pd.DataFrame(
        {"x": random.normal(size=400), "a": first.astype(int), "b": (first ^ (random.random(400) < 0.05)) * 1}
    )
    tasks = {"tags": {"kind": "multilabel", "target": ["a", "b"]}}
    study = Study.from_dict({"name": "s", "data": {"source": "t.csv"}, "tasks": tasks})
    assert study.stratified_by == study.single_task("tags").stratified_by == [["a", "b"]]
    rows = prepare(study, table).rows
    for combination, count in table.groupby(["a", "b"]).size().items():
        for split, share in {"train": 0.7, "validation": 0.15, "test": 0.15}.items():
            found = (table.loc[rows[split], ["a", "b"]] == list(combination)).all(axis=1).sum()
            assert abs(found - share * count) <= 1.5, (combination, split)


def test_the_loss_is_the_mean_over_the_labels_that_are_known():
    """Beside tasks of other kinds, in an order in which heads and labels stand differently."""
    tasks = {
        "region": {"kind": "multiclass"},
        "tags": {"kind": "multilabel", "target": ["a", "b", "c", "d"]},
        "price": {"kind": "regression"},
        "more": {"kind": "multilabel", "target": ["e", "f"]},
    }
    study = make_study({}, tasks)
    prepared = make_prepared(study)
    layout = HeadLayout.of(prepared.targets)
    assert layout.width == 3 + 4 + 1 + 2
    examples = prepared.train
    outputs = torch.randn(len(examples), layout.width, requires_grad=True)
    sums = TaskLosses(study, prepared.targets, layout)(outputs, examples.targets, examples.mask)
    counts = prepared.labels.totals(examples.mask.sum(0))
    for task, (own, columns) in enumerate(zip(prepared.labels.columns, layout.columns, strict=True)):
        known = examples.mask[:, own]
        assert counts[task] == known.sum()
        labels = examples.targets[:, own]
        match prepared.targets[task].kind:
            case "multilabel":
                each = torch.nn.functional.binary_cross_entropy_with_logits(
                    outputs[:, columns], labels, reduction="none"
                )
            case "regression":
                each = (outputs[:, columns] - labels).square()
            case _:
                each = -outputs[:, columns].log_softmax(1).gather(1, labels.long())
        assert sums[task].item() == pytest.approx(each[known].sum().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(sums[1], outputs)
    assert torch.equal(gradient[:, layout.columns[1]] != 0, examples.mask[:, prepared.labels.columns[1]])
    assert gradient.count_nonzero() == counts[1]


@pytest.mark.parametrize(
    ("sharing", "balance", "sampling"),
    [
        ("hard", "fixed", "rows"),
        ("hard", "upgrad", "joint"),
        ("hard", "mgda", "rows"),
        ("hard", "graddrop", "rows"),
        ("hard", "gradnorm", "rows"),
        ("mmoe", "uncertainty", "proportional"),
        ("cross_stitch", "pcgrad", "rows"),
        ("soft", "dwa", "dynamic"),
        ("cgc", "famo", "rows"),
    ],
)
def test_mixed_kinds_learn_with_every_way_of_sharing_and_balancing(prepared, sharing, balance, sampling):
    study = STUDY.with_values(
        {"model.sharing.kind": sharing, "balance.kind": balance, "training.sampling.kind": sampling}
    )
    run = trained(study, prepared)
    assert run.history[-1].metrics["train/loss"] < run.history[0].metrics["train/loss"]
    assert run.evaluate(prepared.validation)["tags/roc_auc"] > 0.75


def test_gradients_at_the_features_are_those_of_the_general_path(prepared):
    """Heads of one, three and three outputs: the Jacobian in closed form and by autograd give the same steps."""
    one, other = (
        trained(
            STUDY.with_values({"balance": {"kind": "upgrad"}, "model.sharing": sharing, "training.epochs": 1}), prepared
        )
        for sharing in ({"kind": "hard"}, {"kind": "grouped", "groups": [["price", "tags", "town"]]})
    )
    assert one.history[0].metrics["val/loss"] == pytest.approx(other.history[0].metrics["val/loss"], rel=1e-4)


@pytest.fixture(scope="module")
def run(prepared) -> TrainingRun:
    return trained(STUDY, prepared)


def test_the_metric_is_the_mean_of_scikit_learn_s_over_the_labels_that_are_known(prepared, run):
    outputs = run.best_outputs(prepared.test)[:, run.model.layout.columns[1]]
    labels, mask = prepared.test.targets[:, 1:4].numpy(), prepared.test.mask[:, 1:4].numpy()
    areas = [roc_auc_score(labels[known, k], outputs[known, k]) for k, known in enumerate(mask.T)]
    assert run.evaluate(prepared.test)["tags/roc_auc"] == pytest.approx(np.mean(areas))


def test_predictions_are_a_probability_and_a_decision_for_each_label_and_survive_saving(prepared, run, tmp_path):
    save_model(tmp_path, STUDY, prepared, run)
    table = houses().iloc[prepared.rows["test"]]
    predicted = SavedModel.load(tmp_path).predict(table)
    named = [f"tags_{word}{label}" for label in LABELS for word in ("", "probability_")]
    assert [name for name in predicted if name.startswith("tags")] == named
    outputs = run.best_outputs(prepared.test)[:, run.model.layout.columns[1]]
    for place, label in enumerate(LABELS):
        np.testing.assert_allclose(
            predicted[f"tags_probability_{label}"], 1 / (1 + np.exp(-outputs[:, place])), rtol=1e-5
        )
        assert predicted[f"tags_{label}"].dtype == np.int64
        np.testing.assert_array_equal(predicted[f"tags_{label}"], predicted[f"tags_probability_{label}"] > 0.5)
    signature = (tmp_path / "signature.json").read_text()
    assert all(name in signature for name in named)


def test_a_baseline_has_the_same_rows_and_an_interval(prepared, run, tmp_path):
    baselines = train_baselines(STUDY, prepared, tmp_path)
    assert baselines["tags"].outputs["test"].shape == (int(prepared.test.mask[:, 1:4].any(1).sum()), 3)
    assert train_baselines(STUDY, prepared, tmp_path)["tags"].test == baselines["tags"].test
    interval = improvement_intervals(STUDY, prepared, run, baselines)["test"].tasks["tags"]
    change = run.evaluate(prepared.test)["tags/roc_auc"] / baselines["tags"].test["tags/roc_auc"] - 1
    assert interval.low < change < interval.high


def test_affinity_is_between_tasks_and_a_group_leaves_the_other_labels_out_of_the_features(prepared):
    matrix = lookahead_affinity(STUDY.with_values({"training.epochs": 1}), prepared)
    assert matrix.shape == (3, 3)
    assert np.isfinite(matrix).all()
    assert set(LABELS) <= set(of_tasks(STUDY, ["price", "town"]).data.ignore)


def test_a_multilabel_task_may_have_a_table_of_its_own(tmp_path):
    table = houses()
    table.drop(columns=LABELS).to_csv(tmp_path / "houses.csv", index=False)
    table[["size", "age", *LABELS]].to_csv(tmp_path / "tags.csv", index=False)
    tree = STUDY.to_dict()
    tree["tasks"]["tags"]["source"] = str(tmp_path / "tags.csv")
    tree["data"]["source"] = str(tmp_path / "houses.csv")
    study = Study.from_dict(tree)
    assert study.targets["tags"] == ["tags_large", "tags_old", "tags_dear"]
    prepared = prepare(study)
    sizes = prepared.labels.totals(prepared.train.mask.sum(0))
    assert sizes[1] == pytest.approx(0.7 * table[LABELS].notna().sum().sum(), rel=0.05)
    predicted = SavedModel(study, TrainingRun(study, prepared).model.eval(), prepared.features, prepared.targets)
    assert "tags_probability_old" in predicted.predict(table).columns


def test_a_rare_label_is_noted_where_it_cannot_be_judged():
    study, table = STUDY.with_values({"data.split.stratify": "town"}), houses()
    rows = prepare(study, table).rows
    table["old"] = 0
    table.loc[[*rows["train"][:2], *rows["validation"][:2]], "old"] = 1
    (note,) = (note for note in prepare(study, table).notes if "'old'" in note)
    assert note.startswith("Task 'tags': the test split has one class only of 1 of 3 labels")
