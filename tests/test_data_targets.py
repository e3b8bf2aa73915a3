"""Labels become class indices or standardised values and come back as they were."""

import json

import numpy as np
import pandas as pd
import pytest

from polyshot.data.targets import Target, fit_target
from polyshot.errors import DataError
from polyshot.study.tasks import BinaryTask, MulticlassTask, RegressionTask

TASKS = {"regression": RegressionTask, "binary": BinaryTask, "multiclass": MulticlassTask}


def fit(kind: str, values, training=None, **settings) -> Target:
    table = pd.DataFrame({"y": values})
    rows = np.arange(len(table)) if training is None else np.array(training)
    return fit_target("y", TASKS[kind](kind=kind, **settings), table, [settings.get("target", "y")], rows)


def test_regression_is_standardised_by_training_labels_and_decoded_to_its_own_units():
    target = fit("regression", [0.0, 2.0, None, 1000.0], training=[0, 1, 2])
    assert (target.mean, target.scale, target.outputs, target.classes) == (1.0, 1.0, 1, None)
    labels = pd.Series([0.0, 2.0, None, 1000.0])
    encoded = target.encode(labels)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, [-1, 1, np.nan, 999])
    np.testing.assert_array_equal(target.decode(encoded), labels)


@pytest.mark.parametrize(
    ("kind", "values", "classes"),
    [
        ("binary", ["no", "yes", None, "no"], ["no", "yes"]),
        ("binary", [True, False, True], [False, True]),
        ("binary", [0.0, 1.0, None], [0, 1]),
        ("binary", [-1, 1, 1], [-1, 1]),
        ("multiclass", [10, 9, 2, 9], [2, 9, 10]),
        ("multiclass", pd.Categorical(["b", "a", "c"]), ["a", "b", "c"]),
        ("multiclass", pd.Series([1, "K", 2.0], dtype=object), ["1", "2", "K"]),
        ("multiclass", pd.array([3, None, 1, 2], dtype="Int64"), [1, 2, 3]),
    ],
)
def test_classes_are_sorted_json_values_that_come_back(kind, values, classes):
    target = fit(kind, values)
    assert target.classes == classes
    assert list(map(type, target.classes)) == list(map(type, classes))
    assert target.outputs == (1 if kind == "binary" else len(classes))
    labels = pd.Series(values)
    encoded = target.encode(labels)
    np.testing.assert_array_equal(np.isnan(encoded), labels.isna())
    decoded = target.decode(encoded[~np.isnan(encoded)])
    assert [str(value) for value in decoded] == [str(value).removesuffix(".0") for value in labels.dropna()]
    assert Target.from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_classes_come_from_all_rows_so_that_labels_outside_training_have_an_index():
    assert fit("multiclass", ["a", "b", "c"], training=[0, 1]).classes == ["a", "b", "c"]


def test_a_label_is_the_same_class_however_its_type_is_spelt():
    target = fit("multiclass", [1, 2, 3])
    for spelling in ([1, 3], [1.0, 3.0], ["1", "3"]):
        assert target.encode(pd.Series(spelling)).tolist() == [0, 2]


@pytest.mark.parametrize(("values", "positive", "classes"), [(["a", "b"], "a", ["b", "a"]), ([0, 1], 0, [1, 0])])
def test_the_positive_class_of_a_binary_task_has_index_1(values, positive, classes):
    target = fit("binary", values, positive=positive)
    assert target.classes == classes
    assert target.encode(pd.Series([positive])).tolist() == [1]


@pytest.mark.parametrize(
    ("kind", "values", "settings", "words"),
    [
        ("regression", [1, 2], {"target": "Y"}, ["tasks.y: the table has no column 'Y'", "'y'"]),
        ("regression", [1.0, "bad", 3], {}, ["'y' holds 'bad' in row 2", "number", "kind binary or multiclass"]),
        ("regression", [1.0, np.inf, 3], {}, ["'y' holds 1 infinite value", "row 2"]),
        ("regression", [5.0, 5.0, None], {}, ["'y' is 5 in all 2 labelled training rows", "nothing to learn"]),
        ("regression", pd.to_datetime(["2020-01-01", "2020-01-02"]), {}, ["'y' holds dates"]),
        ("regression", [None, None], {}, ["'y' is empty in every row"]),
        ("binary", [None, None], {}, ["'y' is empty in every row"]),
        ("binary", ["a", None], {}, ["'y' has one class only, 'a'"]),
        ("multiclass", [1, 1], {}, ["'y' has one class only, 1"]),
        ("binary", ["a", "b", "c"], {}, ["3 classes ('a', 'b', 'c')", "binary task has two", "kind multiclass"]),
        ("binary", ["yes", "no"], {"positive": "yess"}, ["tasks.y.positive: 'yess'", "'no', 'yes'", "mean 'yes'?"]),
        ("multiclass", [0.5, 1, 2], {}, ["'y' holds 0.5 in row 1", "kind regression"]),
        ("multiclass", range(1001), {}, ["1001 classes", "more than 1000", "regression"]),
        ("multiclass", [[1], [2]], {}, ["'y' holds lists"]),
    ],
)
def test_labels_that_do_not_suit_the_kind_are_refused_with_the_mend(kind, values, settings, words):
    with pytest.raises(DataError) as caught:
        fit(kind, values, **settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_unknown_class_in_later_labels_is_named():
    with pytest.raises(DataError, match="'y' holds 'z' in row 2, which is none of the classes"):
        fit("binary", ["a", "b"]).encode(pd.Series(["a", "z"]))
