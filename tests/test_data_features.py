"""Features are fitted on the rows they are given, survive what later rows bring, and are the same after a save."""

import datetime as dt
import decimal

import numpy as np
import pandas as pd
import pytest

from polyshot import Study
from polyshot.data.columns import infer_kind
from polyshot.data.features import MAX_CATEGORIES, Features, feature_columns
from polyshot.errors import DataError, RunError


def table_of(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """Every kind of column, with missing values."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "age": generator.normal(40, 10, rows),
            "count": generator.integers(0, 9, rows),
            "grade": generator.choice(["K", "1", "2"], rows),
            "member": pd.Series(generator.random(rows) < 0.3).astype(object),
            "joined": pd.Timestamp("2020-01-01") + pd.to_timedelta(generator.integers(0, 900, rows), unit="D"),
            "left": pd.date_range("2021-03-01", periods=rows).strftime("%Y-%m-%d"),
        }
    )
    table.loc[3, ["age", "grade", "member", "joined", "left"]] = None
    return table


def fitted(table: pd.DataFrame, **overrides) -> Features:
    return Features.fit(table, list(table.columns), overrides)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "numeric"),
        ([1.5, None], "numeric"),
        (pd.array([1, None], dtype="Int64"), "numeric"),
        ([decimal.Decimal("1.5"), None], "numeric"),
        ([True, False], "boolean"),
        (pd.Series([True, None], dtype=object), "boolean"),
        (["true", "False", None], "boolean"),
        (["a", None], "categorical"),
        (["1", "K"], "categorical"),
        ([1, "K"], "categorical"),
        (["01234", "99999"], "categorical"),
        (pd.Categorical([1, 2]), "categorical"),
        (["2020-01-31", None], "date"),
        (["2020-01-31T10:00:00Z", "2020-01-31 10:00"], "date"),
        ([dt.date(2020, 1, 1), None], "date"),
        (pd.to_datetime(["2020-01-01"]), "date"),
        (["2020-01-31", "2020-02-31"], "categorical"),
        (["1980:1", "2020"], "categorical"),
        ([[1], [2]], None),
        (pd.to_timedelta([1, 2], unit="s"), None),
        ([b"x", b"y"], None),
    ],
)
def test_kinds_are_inferred_from_values(values, kind):
    assert infer_kind(pd.Series(values)) == kind


def test_numbers_are_standardised_by_training_rows_only_and_imputed_by_their_median():
    training = pd.DataFrame({"x": [0.0, 2.0, 4.0, None]})
    features = fitted(training)
    assert features.names == ["x", "x is missing"]
    imputed = np.array([0.0, 2.0, 4.0, 2.0])
    other = features.transform(pd.DataFrame({"x": [100.0, None]}))
    np.testing.assert_allclose(other[:, 0], (np.array([100.0, 2.0]) - imputed.mean()) / imputed.std(), rtol=1e-6)
    assert other[:, 1].tolist() == [0, 1]
    assert other.dtype == np.float32


def test_what_is_fitted_does_not_depend_on_rows_to_come():
    table = table_of()
    alone = fitted(table.head(40)).transform(table.head(40))
    later = table.tail(20).assign(age=1e6, grade="new", count=-5)
    features = fitted(table.head(40))
    features.transform(later)
    np.testing.assert_array_equal(features.transform(table.head(40)), alone)


def test_a_row_is_transformed_alike_alone_and_among_others():
    table = table_of()
    features = fitted(table)
    together = features.transform(table)
    alone = np.concatenate([features.transform(table.iloc[[row]]) for row in range(5)])
    np.testing.assert_array_equal(alone, together[:5])
    assert together.shape == (60, len(features.names))
    assert np.isfinite(together).all()
    assert features.transform(table.head(0)).shape == (0, len(features.names))


def test_categories_are_one_hot_with_missing_as_one_of_them_and_unseen_ones_as_none():
    features = fitted(pd.DataFrame({"c": ["a", "b", None, "a"]}))
    assert features.names == ["c=a", "c=b", "c is missing"]
    assert features.transform(pd.DataFrame({"c": ["b", None, "z"]})).tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_the_rarest_of_many_categories_share_one_output_with_unseen_ones():
    frequent = [f"c{number}" for number in range(MAX_CATEGORIES + 30) for _ in range(4)]
    features = fitted(pd.DataFrame({"c": [*frequent, "rare"]}))
    assert len(features.names) == MAX_CATEGORIES
    assert features.names[-1] == "c=other"
    rare, unseen = features.transform(pd.DataFrame({"c": ["rare", "unseen"]}))
    assert rare.tolist() == unseen.tolist() == [0] * (MAX_CATEGORIES - 1) + [1]


def test_a_category_is_the_same_however_the_file_spelt_its_type():
    features = fitted(pd.DataFrame({"c": [1, 2, 1]}), c="categorical")
    expected = features.transform(pd.DataFrame({"c": [2]})).tolist()
    for spelling in ([2.0], ["2"], pd.array([2], dtype="Int64"), pd.Categorical([2]), np.array([2], dtype=object)):
        assert features.transform(pd.DataFrame({"c": spelling})).tolist() == expected


def test_booleans_are_0_and_1_imputed_by_the_more_frequent_however_spelt():
    features = fitted(pd.DataFrame({"b": pd.Series([True, True, False, None], dtype=object)}))
    assert features.names == ["b", "b is missing"]
    for spelling in ([True, False, None], ["yes", "no", None], [1, 0, None], ["True", "FALSE", None]):
        assert features.transform(pd.DataFrame({"b": spelling})).tolist() == [[1, 0], [0, 0], [1, 1]]


def test_a_date_gives_days_year_month_and_weekday_whether_text_or_time():
    texts = ["2020-02-29", "2021-12-31", None, "2019-07-01"]
    features = fitted(pd.DataFrame({"d": texts}))
    assert features.names == ["d days", "d year", "d month", "d weekday", "d is missing"]
    outputs = features.transform(pd.DataFrame({"d": texts}))
    np.testing.assert_array_equal(features.transform(pd.DataFrame({"d": pd.to_datetime(texts)})), outputs)
    parts = np.array([[18321, 2020, 2, 5], [18992, 2021, 12, 4], [18321, 2020, 7, 4], [18078, 2019, 7, 0]])
    np.testing.assert_allclose(outputs[:, :4], (parts - parts.mean(0)) / parts.std(0), rtol=1e-4)
    assert outputs[:, 4].tolist() == [0, 0, 1, 0]


def test_columns_that_say_nothing_are_left_out_with_a_note_each():
    table = pd.DataFrame({"x": np.arange(50.0), "constant": 1, "empty": [None] * 50, "lists": [[1]] * 50})
    table["name"] = [f"person {number}" for number in range(50)]
    table["half"] = ["a", None] * 25  # one value, but missing tells something
    features = fitted(table)
    assert features.columns == ["x", "half"]
    assert [note.split("'")[1] for note in features.notes] == ["constant", "empty", "lists", "name"]
    assert "data.columns" in features.notes[-1]
    assert len(fitted(table, name="categorical").names) > 40


def test_other_columns_of_later_rows_are_ignored_and_their_order_does_not_matter():
    table = table_of()
    features = fitted(table)
    shuffled = table[table.columns[::-1]].assign(target=1)
    np.testing.assert_array_equal(features.transform(shuffled), features.transform(table))


def test_saved_features_are_read_without_pickle_and_give_equal_outputs(tmp_path):
    table = table_of()
    features = fitted(table)
    features.save(tmp_path / "model")
    loaded = Features.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.transform(table), features.transform(table))
    assert (loaded.columns, loaded.names, loaded.notes) == (features.columns, features.names, features.notes)
    (tmp_path / "model" / "features.skops").write_bytes(b"damaged")
    with pytest.raises(RunError, match="features cannot be read"):
        Features.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="grade"), ["no column 'grade'", "trained with", "add it"]),
        (lambda t: t.rename(columns={"grade": "Grade"}), ["no column 'grade'", "Did you mean 'Grade'?"]),
        (lambda t: t.assign(age=t["age"].astype(object).where(t.index != 4, "old")), ["'age' holds 'old' in row 5"]),
        (lambda t: t.assign(age=t["age"].where(t.index != 4, np.inf)), ["'age' holds 1 infinite value", "row 5"]),
        (lambda t: t.assign(age=1e300), ["'age'", "too large"]),
        (lambda t: t.assign(member="maybe"), ["'member' holds 'maybe' in row 1", "true or false"]),
        (lambda t: t.assign(joined="31/12/2020"), ["'joined' holds '31/12/2020' in row 1", "ISO date"]),
        (lambda t: t.assign(joined=20201231), ["'joined' holds numbers", "dates"]),
        (lambda t: t.assign(count=t["joined"]), ["'count' holds dates", "numbers"]),
        (lambda t: pd.concat([t, t["age"]], axis=1), ["'age' appears more than once"]),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_column_and_value(change, words):
    features = fitted(table_of())
    with pytest.raises(DataError) as caught:
        features.transform(change(table_of()))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_infinities_and_wrong_kinds_are_refused_when_fitting_too():
    with pytest.raises(DataError, match="'x' holds 2 infinite values"):
        fitted(pd.DataFrame({"x": [1, np.inf, -np.inf]}))
    with pytest.raises(DataError, match=r"'x' holds 'b' in row 2 .*data\.columns"):
        fitted(pd.DataFrame({"x": ["1", "b"]}), x="numeric")
    with pytest.raises(DataError, match=r"no feature column is left\. The column 'x' is left out"):
        fitted(pd.DataFrame({"x": [1, 1]}))


def study_of(**data) -> Study:
    values = {"name": "s", "data": {"source": "x.csv", **data}, "tasks": {"y": {"kind": "regression"}}}
    return Study.from_dict(values)


def test_features_are_all_columns_but_targets_group_and_ignored_ones_unless_named():
    table = pd.DataFrame(columns=["a", "b", "school", "y"])
    assert feature_columns(table, study_of()) == ["a", "b", "school"]
    assert feature_columns(table, study_of(group="school", ignore=["b"])) == ["a"]
    assert feature_columns(table, study_of(features=["school", "a"], group="school")) == ["school", "a"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"features": ["age", "schol"]}, ["data.features: the table has no column 'schol'", "Did you mean 'school'?"]),
        ({"ignore": ["zzz"]}, ["data.ignore: the table has no column 'zzz'", "It has 'age', 'school', 'y'."]),
        ({"group": "scool"}, ["data.group: the table has no column 'scool'"]),
        ({"columns": {"agee": "numeric"}}, ["data.columns: the table has no column 'agee'"]),
        ({"ignore": ["age", "school"]}, ["no feature column is left", "ignore fewer"]),
    ],
)
def test_a_column_that_the_table_lacks_is_named_with_its_key(data, words):
    table = pd.DataFrame(columns=["age", "school", "y"])
    with pytest.raises(DataError) as caught:
        feature_columns(table, study_of(**data))
    assert all(word in str(caught.value) for word in words), str(caught.value)
