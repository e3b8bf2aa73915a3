"""Rows are divided once, reproducibly, by fraction or whole groups, in equal proportions of classes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyshot import Study
from polyshot.data.split import folds_of_rows, split_rows
from polyshot.errors import DataError


def study_of(kind: str = "regression", group: str | None = None, **split) -> Study:
    data = {"source": "x.csv", "group": group, "split": split}
    return Study.from_dict({"name": "s", "data": data, "tasks": {"y": {"kind": kind}}})


def table_of(rows: int, seed: int = 0, groups: int = 20) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    y, school = generator.normal(size=rows), generator.integers(0, groups, rows)
    return pd.DataFrame({"y": y, "school": school, "c": generator.choice(["a", "b", "c"], rows, p=[0.7, 0.25, 0.05])})


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(8, 300),
    groups=st.integers(3, 30) | st.none(),
    validation=st.floats(0.02, 0.45),
    test=st.floats(0.02, 0.45),
    seed=st.integers(0, 9),
    kind=st.sampled_from(["regression", "multiclass"]),
)
def test_every_row_is_in_one_split_and_no_group_in_two(rows, groups, validation, test, seed, kind):
    table = table_of(rows, seed).assign(y=np.arange(rows) % 5)
    if groups:
        table["school"] = [f"s{number % groups}" for number in range(rows)]
    units = min(groups or rows, rows)
    study = study_of(kind, "school" if groups else None, validation=validation, test=test, seed=seed)
    if units - max(1, round(validation * units)) - max(1, round(test * units)) < 1:
        with pytest.raises(DataError, match="too few"):
            split_rows(table, study)
        return
    split = split_rows(table, study)
    assert sorted(np.concatenate(list(split.values()))) == list(range(rows))
    unit = table["school"] if groups else table.index.to_series()
    drawn = {name: set(unit.iloc[positions]) for name, positions in split.items()}
    assert sum(map(len, drawn.values())) == units
    for name, fraction in (("test", test), ("validation", validation)):
        asked = max(1, round(fraction * units))
        # A small class that has to reach all three splits may leave fewer rows to a large one.
        assert len(drawn[name]) == asked if kind == "regression" or groups else 1 <= len(drawn[name]) <= asked


def test_equal_seeds_give_equal_splits_and_others_do_not():
    table = table_of(200)
    first, again, other = (split_rows(table, study_of(seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["test"], other["test"])


@pytest.mark.parametrize("group", [None, "school"])
def test_the_split_does_not_depend_on_the_studys_own_seed(group):
    table = table_of(200)
    study = study_of(group=group)
    first, other = split_rows(table, study), split_rows(table, study.with_values({"seed": 9}))
    assert np.array_equal(first["train"], other["train"])


def test_each_class_and_the_missing_labels_are_divided_in_proportion():
    labels = ["a"] * 700 + ["b"] * 200 + [None] * 100
    split = split_rows(pd.DataFrame({"y": labels}), study_of("binary", validation=0.2, test=0.1))
    counts = {name: pd.Series(labels)[rows].value_counts(dropna=False).tolist() for name, rows in split.items()}
    assert counts == {"train": [490, 140, 70], "validation": [140, 40, 20], "test": [70, 20, 10]}


def test_three_rows_of_a_rare_class_reach_all_three_splits():
    labels = np.array(["a"] * 500 + ["b"] * 3)
    for seed in range(5):
        split = split_rows(pd.DataFrame({"y": labels}), study_of("binary", seed=seed))
        assert [int((labels[rows] == "b").sum()) for rows in split.values()] == [1, 1, 1]


@pytest.mark.parametrize(("rows", "rows_of_class"), [(40, 1), (300, 3), (300, 2)])
def test_classes_too_small_to_be_divided_leave_the_fractions_as_they_are(rows, rows_of_class):
    labels = [f"c{number // rows_of_class}" for number in range(rows)]
    split = split_rows(pd.DataFrame({"y": labels}), study_of("multiclass", validation=0.1, test=0.2))
    assert [len(rows) for rows in split.values()] == [len(labels) * share // 10 for share in (7, 1, 2)]


def test_without_stratify_classes_are_drawn_as_they_come():
    table = pd.DataFrame({"y": ["a"] * 500 + ["b"] * 500})
    split = split_rows(table, study_of("binary", stratify=False, validation=0.2, test=0.2))
    assert (table["y"][split["test"]] == "a").sum() != 100


@pytest.mark.parametrize(
    ("columns", "group", "words"),
    [
        ({"y": [1, 2]}, None, ["the table has 2 rows, too few", "data.split"]),
        ({"y": range(9), "g": ["p", "q", "p"] * 3}, "g", ["data.group", "'g' has 2 groups, too few", "give more"]),
        ({"y": range(9), "g": ["p"] * 9}, "g", ["'g' has 1 group, too few"]),
        ({"y": range(4), "g": ["p", None, "q", None]}, "g", ["'g' is empty in 2 rows", "row 2", "fill it"]),
        ({"y": [None] * 9}, None, ["tasks.y", "'y' is empty in every row"]),
        ({"y": [1] + [None] * 20}, None, ["tasks.y: no row of the", "split has a label", "known in 1 row of 21"]),
        ({"z": [1, 2, 3]}, None, ["tasks.y: the table has no column 'y'"]),
    ],
)
def test_a_table_that_cannot_be_divided_is_refused_with_counts_and_the_mend(columns, group, words):
    with pytest.raises(DataError) as caught:
        split_rows(pd.DataFrame(columns), study_of(group=group))
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- splits that are given, and folds --------------------------------------------------------------------------------


def test_a_column_may_say_the_split_of_each_row():
    table = table_of(30).assign(part=["train"] * 20 + ["validation"] * 6 + ["test"] * 4)
    split = split_rows(table, study_of(column="part"))
    assert [list(rows) for rows in split.values()] == [list(range(20)), list(range(20, 26)), list(range(26, 30))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": ["train"] * 29 + ["tset"]}, ["'part' holds 'tset' in row 30", "train, validation or test"]),
        ({"part": ["train"] * 25 + ["test"] * 5}, ["'part' says 'validation'"]),
        ({"school": [1] * 30}, ["group '1' are in train and in validation"]),
    ],
)
def test_a_split_that_cannot_be_is_said(change, words):
    given = {"part": ["train"] * 20 + ["validation"] * 6 + ["test"] * 4, "school": range(30)}
    with pytest.raises(DataError) as caught:
        split_rows(table_of(30).assign(**(given | change)), study_of(group="school", column="part"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("group", [None, "school"])
def test_folds_hold_every_row_once_and_no_group_twice(group):
    table = table_of(203, groups=17).assign(y=lambda t: t["c"])
    folds = folds_of_rows(table, study_of("multiclass", group), 5)
    assert np.bincount(folds).min() > 0 and len(np.bincount(folds)) == 5
    if group:
        assert (table.groupby("school")["c"].size() > 0).all()
        assert all(len(set(folds[table["school"] == school])) == 1 for school in table["school"].unique())
    else:
        for kind in "abc":
            counts = np.bincount(folds[table["c"] == kind], minlength=5)
            assert counts.max() - counts.min() <= 1
    assert (folds_of_rows(table, study_of("multiclass", group), 5) == folds).all()
    with pytest.raises(DataError, match=r"transfer\.folds: 300 were asked for"):
        folds_of_rows(table, study_of("multiclass", group), 300)
