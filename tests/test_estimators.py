"""`MultiTaskRegressor` and `MultiTaskClassifier` are scikit-learn's kind of estimators, and learn as the loop does."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris, load_linnerud
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import polyshot
from polyshot.errors import StudyError
from polyshot.estimators import MultiTaskClassifier, MultiTaskRegressor

SMALL = {"width": 16, "depth": 1, "epochs": 25, "batch_size": 32, "learning_rate": 0.03, "random_state": 0}


def related(rows: int = 240, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, 5], and two columns of labels made of one projection of them, a share of them NaN."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(rows, 5))
    signal = inputs @ random.normal(size=5)
    labels = np.stack([100 + 10 * signal, np.tanh(signal)], axis=1)
    labels[random.random(labels.shape) < missing] = np.nan
    return inputs, labels


@parametrize_with_checks([MultiTaskRegressor(**SMALL), MultiTaskClassifier(**SMALL)])
def test_it_passes_scikit_learns_checks(estimator, check):
    check(estimator)


def test_labels_that_are_missing_are_masked_and_the_others_learnt():
    inputs, labels = related(missing=0.4)
    model = MultiTaskRegressor(**SMALL).fit(inputs, labels)
    assert model.predict(inputs).shape == labels.shape
    assert model.score(inputs, labels) > 0.9
    classes = np.where(np.isnan(labels), None, np.where(labels > np.nanmedian(labels, axis=0), "high", "low"))
    classifier = MultiTaskClassifier(**SMALL).fit(inputs, classes)
    assert classifier.score(inputs, classes) > 0.9
    assert [column.shape for column in classifier.predict_proba(inputs)] == [(240, 2), (240, 2)]
    assert [list(column) for column in classifier.classes_] == [["high", "low"], ["high", "low"]]


def test_tasks_of_different_numbers_of_classes_keep_their_own():
    inputs, species = load_iris(return_X_y=True)
    labels = np.stack([species, species == 0], axis=1).astype(float)
    labels[::5, 0] = np.nan
    model = MultiTaskClassifier(**SMALL).fit(inputs, labels)
    assert [list(classes) for classes in model.classes_] == [[0, 1, 2], [0, 1]]
    assert model.predict(inputs).dtype.kind == "i"
    assert model.score(inputs, labels) > 0.9


def test_a_weight_of_zero_takes_a_task_out_of_what_is_learnt():
    inputs, labels = related()
    model = MultiTaskRegressor(**SMALL, task_weights=[1, 0]).fit(inputs, labels)
    ignored = labels.copy()
    ignored[:, 1] = np.random.default_rng(1).permutation(labels[:, 1])
    again = MultiTaskRegressor(**SMALL, task_weights=[1, 0]).fit(inputs, ignored)
    np.testing.assert_array_equal(model.predict(inputs)[:, 0], again.predict(inputs)[:, 0])


def test_it_is_searched_in_a_pipeline_over_ways_of_sharing_and_balancing():
    exercises, measures = load_linnerud(return_X_y=True)
    pipeline = make_pipeline(MinMaxScaler(), MultiTaskRegressor(**SMALL | {"epochs": 3}))
    grid = {
        "multitaskregressor__sharing": ["hard", {"kind": "mmoe", "experts": 2}],
        "multitaskregressor__balance": ["fixed", "pcgrad"],
    }
    search = GridSearchCV(pipeline, grid, cv=KFold(2), error_score="raise").fit(exercises, measures)
    trained = {study.model.sharing.kind for study in [search.best_estimator_[-1].study_]}
    assert trained <= {"hard", "mmoe"}
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_whatever_a_study_can_say_an_estimator_can_and_no_more():
    inputs, labels = related(60)
    model = polyshot.MultiTaskRegressor(**SMALL, values={"training.optimiser.kind": "sgd", "training.epochs": 2})
    assert model.fit(inputs, labels).n_iter_ == 2
    assert model.study_.training.optimiser.kind == "sgd"
    with pytest.raises(StudyError, match="Did you mean 'hard'"):
        MultiTaskRegressor(sharing="hart").fit(inputs, labels)
    with pytest.raises(ValueError, match="task_weights has 3 weights and y has 2 columns"):
        MultiTaskRegressor(task_weights=[1, 1, 1]).fit(inputs, labels)
