"""`polyshot transfer`: budgets, the verdict and its statistics, the guard, resuming, and the command."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_transfer import source_study, table, target_study, trained_source
from scipy.stats import t, ttest_rel

from polyshot.errors import DataError, ResourceError, RunError, StudyError
from polyshot.study import Study
from polyshot.training.baselines import SECTIONS
from polyshot.training.loop import Epoch, TrainingRun
from polyshot.transfer.problem import Problem, Sources, TargetData
from polyshot.transfer.trials import trials_of
from polyshot.transfer.verdict import (
    comparison,
    epochs_to_converge,
    estimate,
    holm,
    labels_needed,
    recommended,
    verdict_of,
)
from polyshot.verbs.predict import predict
from polyshot.verbs.transfer import KEPT, TransferResult, find_sources, transfer

METHODS = {"fine_tuning": {}, "linear_probe": {}}
HARMFUL = {"linear_probe": {}, "held": {"kind": "l2_sp", "strength": 100.0}}


@pytest.fixture(scope="module")
def helped(tmp_path_factory) -> TransferResult:
    """From many rows of the same function to 20 and 280 of them."""
    folder = tmp_path_factory.mktemp("helpful")
    trained_source(folder)
    return transfer(target_study(folder, **{"transfer.methods": METHODS, "transfer.seeds": 3}))


@pytest.fixture(scope="module")
def hurt(tmp_path_factory) -> TransferResult:
    """From rows whose labels were permuted, by methods that hold on to what was learnt there."""
    folder = tmp_path_factory.mktemp("harmful")
    trained_source(folder, harmful=True)
    return transfer(target_study(folder, **{"transfer.methods": HARMFUL, "transfer.seeds": 3}))


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdicts(result: TransferResult) -> dict[tuple[str, str], str]:
    rows = result.table[result.table["method"] != "scratch"]
    return {(row["budget"], row["method"]): row["verdict"] for row in rows.to_dict(orient="records")}


def test_a_planted_helpful_source_is_seen_to_help(helped: TransferResult) -> None:
    found = verdicts(helped)
    assert found["20", "linear_probe"] == found["20", "fine_tuning"] == "helped"
    assert set(found.values()) <= {"helped", "within noise"}
    assert helped.recommended["20"] in METHODS and helped.method in METHODS


def test_a_planted_harmful_source_is_seen_to_hurt_and_the_guard_gives_back_scratch(hurt: TransferResult) -> None:
    found = verdicts(hurt)
    assert found["all", "linear_probe"] == found["all", "held"] == "hurt"
    assert hurt.recommended["all"] == hurt.method == "scratch"
    validation = hurt.table[hurt.table["budget"] == "all"].set_index("method")["validation"]
    assert validation["scratch"] == validation.max()


def test_without_the_guard_the_best_method_is_given_back(hurt: TransferResult) -> None:
    study = Study.load(hurt.folder / "study.yaml")
    target = Study.load(hurt.folder.parents[2] / "target.yaml")
    assert study.transfer.guard
    unguarded = transfer(target.with_values({"transfer.guard": False, "transfer.seeds": 3}))
    assert unguarded.method in HARMFUL and "scratch" not in unguarded.recommended.values()
    pd.testing.assert_frame_equal(unguarded.table, hurt.table)  # nothing was trained again


def test_the_table_says_how_far_labels_and_steps_go(helped: TransferResult) -> None:
    few = helped.table[helped.table["budget"] == "20"].set_index("method")
    assert few.loc["scratch", "scratch_labels"] == 20
    assert few.loc["linear_probe", "scratch_labels"] > 40 or few.loc["linear_probe", "is_more"]
    assert few.loc["linear_probe", "steps"] < few.loc["scratch", "steps"]
    assert (helped.table["low"] < helped.table["value"]).all() and (helped.table["value"] < helped.table["high"]).all()
    assert (helped.folder / "plots" / "labels-sold.png").stat().st_size > 10_000


def test_the_model_given_back_predicts(helped: TransferResult) -> None:
    rows = table(200, 9)
    predicted = predict(helped.folder, rows)
    assert ((predicted["sold"] == rows["sold"]).mean()) > 0.8
    assert (predict("here", rows, storage=helped.folder.parents[1])["sold"] == predicted["sold"]).all()


def test_methods_are_runs_below_the_comparison(helped: TransferResult) -> None:
    from mlflow import MlflowClient

    from polyshot.tracking.store import resolve

    client = MlflowClient(resolve(Study.load(helped.folder / "study.yaml")).uri)
    parent = client.get_run(helped.mlflow_id)
    assert parent.data.tags["polyshot.kind"] == "transfer" and parent.data.tags["polyshot.method"] == helped.method
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{helped.mlflow_id}'", max_results=10
    )
    assert {run.info.run_name for run in children} == {"scratch", *METHODS}
    probe = next(run for run in children if run.info.run_name == "linear_probe")
    curve = client.get_metric_history(probe.info.run_id, "test/sold/roc_auc")
    own = helped.table[helped.table["method"] == "linear_probe"]
    assert [(point.step, point.value) for point in curve] == list(zip(own["labels"], own["value"], strict=True))
    assert probe.data.tags["verdict.sold.20"] == "helped"


# --- resuming --------------------------------------------------------------------------------------------------------


def test_an_interrupted_comparison_repeats_no_training(tmp_path, monkeypatch) -> None:
    source_study(tmp_path, rows=300, **{"training.epochs": 3})
    study = target_study(tmp_path, rows=300, **{"transfer.methods": METHODS, "transfer.seeds": 1, "training.epochs": 2})
    sources = find_sources(study)
    assert find_sources(study).main.digest == sources.main.digest  # trained once
    assert len(list((tmp_path / "runs" / "there").glob("train-*"))) == 1

    epochs, limit = [], 5
    plain = TrainingRun._train_epoch

    def counted(run: TrainingRun, number: int) -> float:
        epochs.append(run.study.name)
        if len(epochs) == limit:
            raise KeyboardInterrupt
        return plain(run, number)

    monkeypatch.setattr(TrainingRun, "_train_epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        transfer(study)
    limit = 1000
    result = transfer(study)
    assert result.folder.name == "transfer-1"
    assert len(epochs) == 5 + (6 - 2) * 2  # two trainings had ended, the third begins again


def test_a_method_more_trains_that_method_only(helped: TransferResult) -> None:
    study = Study.load(helped.folder.parents[2] / "target.yaml").with_values({"transfer.methods.knn.kind": "knn"})
    cache = study.storage_folder / KEPT
    before = set(cache.iterdir())
    outcomes = [trial.outcome(cache) for trial in trials_of(TargetData.of(study), find_sources(study))]
    assert {path.name.partition("-")[0] for path in set(cache.iterdir()) - before} == {"knn"}
    table = comparison(study, [TargetData.of(study).own], outcomes).set_index(["budget", "method"])
    own = helped.table.set_index(["budget", "method"])
    pd.testing.assert_series_equal(table.loc[own.index, "value"], own["value"])
    other = study.with_values({"training.optimiser.learning_rate": 1e-3})
    assert not any(trial._path(cache).exists() for trial in trials_of(TargetData.of(other), find_sources(other)))


# --- cross-validation ------------------------------------------------------------------------------------------------


def test_each_row_is_tested_on_once_and_folds_are_one_estimate(tmp_path) -> None:
    trained_source(tmp_path)
    values = {"transfer.methods": {"linear_probe": {}}, "transfer.seeds": 2, "transfer.budgets": [20]}
    study = target_study(tmp_path, rows=150, **values, **{"training.epochs": 4, "transfer.folds": 3})
    targets = TargetData.folds(study)
    tested = [target.own.rows["test"] for target in targets]
    assert sorted(np.concatenate(tested)) == list(range(150))
    assert all((targets[place].own.rows["validation"] == tested[(place + 1) % 3]).all() for place in range(3))
    result = transfer(study)
    assert len(result.table) == 2
    probe = result.table.set_index("method").loc["linear_probe"]
    assert probe["verdict"] == "helped" and probe["low"] < probe["value"] < probe["high"]

    outcomes = [
        trial.outcome(study.storage_folder / KEPT)
        for fold, target in enumerate(targets)
        for trial in trials_of(target, find_sources(study), fold)
    ]
    assert len(outcomes) == 2 * 2 * 3
    values = [o.metrics["test"]["sold/roc_auc"] for o in outcomes if o.method == "linear_probe"]
    assert probe["value"] == pytest.approx(np.mean(values))
    saved = Study.load(result.folder / "model" / "study.yaml")
    assert saved.data.split == study.data.split
    assert len(predict(result.folder, table(5, 9))) == 5


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> TargetData:
    folder = tmp_path_factory.mktemp("budgets")
    return TargetData.of(
        target_study(folder, tasks={"region": {"kind": "multiclass"}, "price": {"kind": "regression"}})
    )


def at(target: TargetData, budget: Any, repetition: int = 0, **values: Any) -> Problem:
    changed = replace(target, study=target.study.with_values(values))
    return Problem.of(changed, Sources(None), budget, repetition)  # type: ignore[arg-type]  # no source is asked for


def test_smaller_budgets_are_parts_of_larger_ones_and_every_class_comes_early(target: TargetData) -> None:
    rows = [set(at(target, budget).labelled) for budget in (3, 10, 100, "all")]
    assert [len(some) for some in rows] == [3, 10, 100, len(target.own.train)]
    assert all(small < large for small, large in itertools.pairwise(rows))
    labels = target.own.train.targets[:, 0]
    assert labels[sorted(rows[0])].unique().numel() == 3
    shares = [np.bincount(labels[sorted(some)].long()) / len(some) for some in rows]
    np.testing.assert_allclose(shares[2], shares[3], atol=0.03)
    assert set(at(target, 10, 1).labelled) != rows[1]


def test_budgets_may_be_of_each_class(target: TargetData) -> None:
    problem = at(target, 4, **{"transfer.per_class": True})
    assert np.bincount(target.own.train.targets[problem.labelled, 0].long()).tolist() == [4, 4, 4]


def test_every_budget_has_as_many_updates_and_all_labels_are_plain_training(target: TargetData) -> None:
    everything = at(target, "all")
    assert everything.own.train.features.equal(target.own.train.features[everything.labelled])
    steps = math.ceil(len(target.own.train) / 64)
    for budget in (10, 100):
        problem = at(target, budget)
        run = TrainingRun(problem.study, problem.own)
        assert run.sampler.steps == steps
        assert problem.study.training.batch_size == min(64, budget)


def test_what_is_fitted_to_labels_is_fitted_to_those_that_are_known(target: TargetData) -> None:
    problem = at(target, 10)
    full, own = target.own.targets[1], problem.targets[1]
    values = full.decode(target.own.train.targets[problem.labelled, 1].double().numpy())
    assert (own.mean, own.scale) == pytest.approx((values.mean(), values.std()))
    for split in ("validation", "test"):
        again = own.decode(getattr(problem.own, split).targets[:, 1].double().numpy())
        np.testing.assert_allclose(
            again, full.decode(getattr(target.own, split).targets[:, 1].double().numpy()), rtol=1e-5
        )


def test_budgets_that_cannot_be_had_are_refused(target: TargetData) -> None:
    with pytest.raises(DataError, match="5000 labels were asked for and the training split has 280"):
        at(target, 5000)
    with pytest.raises(DataError, match="with a budget of 1, task 'region' has no two different labels"):
        at(target, 1)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_without_noise_of_rows_the_test_is_the_paired_t_test() -> None:
    random = np.random.default_rng(0)
    method, scratch = random.normal(1, 1, 8), random.normal(0, 1, 8)
    difference = method - scratch
    found = estimate(difference, np.full(1000, difference.mean()), rows=100)
    expected = ttest_rel(method, scratch)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_with_one_repetition_the_interval_is_about_the_rows() -> None:
    resamples = np.random.default_rng(0).normal(0.5, 0.2, 1000)
    found = estimate(np.array([0.5]), resamples, rows=30)
    assert found.freedom == 29 and found.error == pytest.approx(resamples.std(ddof=1))
    assert found.interval[1] - 0.5 == pytest.approx(t.ppf(0.975, 29) * found.error)


def test_the_test_rejects_as_often_as_it_says() -> None:
    """Repetitions and rows that both vary, and no difference: 5 % of the tests may reject, or fewer."""
    random = np.random.default_rng(0)
    rejected = 0
    for _ in range(1000):
        by_seed, by_row = random.normal(0, 0.1, 3), random.normal(0, 1, 100)
        values = by_seed + by_row.mean()
        draws = by_row[random.integers(100, size=(200, 100))].mean(1) + by_seed.mean()
        rejected += estimate(values, draws, 100).p_value < 0.05
    assert 10 <= rejected <= 70


def test_p_values_are_corrected_for_the_number_of_methods() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.02, math.nan, 0.5])
    assert corrected[0] == pytest.approx(0.04) and math.isnan(corrected[1])
    assert [verdict_of(1, 0.04), verdict_of(-1, 0.04), verdict_of(-1, 0.06), verdict_of(1, math.nan)] == [
        "helped", "hurt", "within noise", "unknown",
    ]  # fmt: skip


def test_labels_that_scratch_needs_are_read_off_its_curve() -> None:
    labels, curve = [10, 100, 1000], [0.5, 0.7, 0.9]
    assert labels_needed("accuracy", 0.8, labels, curve) == (pytest.approx(100 * math.sqrt(10)), False, False)
    assert labels_needed("accuracy", 0.95, labels, curve) == (1000, True, False)
    assert labels_needed("accuracy", 0.4, labels, curve) == (10, False, True)
    assert labels_needed("rmse", 6.0, labels, [8.0, 5.0, 4.0]) == (pytest.approx(10 ** (1 + 2 / 3)), False, False)


def test_a_curve_converges_where_it_is_within_5_percent_of_its_end() -> None:
    values = [(9.0, True), (2.09, True), (2.0, True), (2.2, False)]
    history = [Epoch(n, {"val/y/rmse": value}, 0.0, is_best) for n, (value, is_best) in enumerate(values, start=1)]
    assert epochs_to_converge(history, "val/y/rmse") == 2


def test_the_recommended_method_is_chosen_on_validation_over_all_tasks() -> None:
    rows = [("scratch", 0.0, 0.0), ("one", 0.2, -0.3), ("both", 0.02, 0.02)]
    frame = pd.DataFrame(
        [
            {"budget": "all", "method": method, "task": task, "improvement": value}
            for method, *values in rows
            for task, value in zip("ab", values, strict=True)
        ]
    )
    assert recommended(frame, guard=True) == {"all": "both"}
    worse = frame[frame["method"] != "both"]
    assert recommended(worse, guard=True) == {"all": "scratch"}
    assert recommended(worse, guard=False) == {"all": "one"}


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_verdicts_and_what_to_do_next(polyshot, helped: TransferResult) -> None:
    printed = polyshot("transfer", helped.folder.parents[2] / "target.yaml")
    assert printed.code == 0, printed.err
    for words in ("sold: roc_auc on test", "linear_probe", "helped", "Recommended with 20 labels", "polyshot predict"):
        assert words in printed.out


def test_what_is_missing_is_said(tmp_path) -> None:
    study = target_study(tmp_path)
    with pytest.raises(StudyError, match=r"transfer\.source: is missing"):
        transfer(study.with_values({"transfer.source": None}))
    with pytest.raises(StudyError, match=r"source\.yaml: no such file"):
        transfer(study)
    with pytest.raises(RunError, match="neither a run's folder"):
        transfer(study.with_values({"transfer.source": "nowhere"}))
    with pytest.raises(ResourceError, match="trains in one process"):
        transfer(study.with_values({"scale.workers": 2}))
    assert "transfer" not in SECTIONS  # a source is the same model whatever is done with it
