"""The study file written for a table validates, trains as it stands, and says what was guessed."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml

from polyshot import Study
from polyshot.data.infer import study_text
from polyshot.data.prepare import prepare
from polyshot.errors import DataError


def table_of(**columns) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    base = {
        "Unnamed: 0": range(120),
        "user_id": generator.integers(0, 60, 120),
        "name": [f"person {number}" for number in range(120)],
        "age": generator.normal(size=120),
        "city: old": generator.choice(["p", "q"], 120),
        "since": pd.date_range("2020-01-01", periods=120).strftime("%Y-%m-%d"),
        "nothing": [None] * 120,
    }
    return pd.DataFrame(base | columns)


COLUMNS = {
    "number": np.random.default_rng(1).normal(size=120),
    "word": ["yes", "no"] * 60,
    "flag": [True, False, None] * 40,
    "grade": ["a", "b", "c"] * 40,
    "stars": [1, 2, 3, 4, 5, None] * 20,
    "count": range(200, 440, 2),
}
KINDS = {
    "number": "regression",
    "word": "binary",
    "flag": "binary",
    "grade": "multiclass",
    "stars": "multiclass",
    "count": "regression",
}


def written(tmp_path, table: pd.DataFrame, name: str = "my study", targets: list[str] | None = None) -> Study:
    (tmp_path / "study.yaml").write_text(study_text(table, "rows.csv", name, targets), encoding="utf-8")
    return Study.load(tmp_path / "study.yaml")


@pytest.mark.parametrize("targets", [[target] for target in KINDS] + [list(KINDS)])
def test_what_is_written_can_be_trained_as_it_stands(tmp_path, targets):
    table = table_of(**COLUMNS)
    table.to_csv(tmp_path / "rows.csv", index=False)
    study = written(tmp_path, table, targets=targets)
    assert {name: task.kind for name, task in study.tasks.items()} == {target: KINDS[target] for target in targets}
    assert study.data.ignore == ["Unnamed: 0", "user_id", "name"]
    assert study.name == "my-study"
    prepared = prepare(study)
    assert {"age", "city: old", "since"} <= set(prepared.features.columns)


@pytest.mark.parametrize(
    ("columns", "targets"),
    [
        ({"target": COLUMNS["word"], "grade": COLUMNS["grade"]}, ["target"]),
        ({"y1": COLUMNS["number"], "y2": COLUMNS["word"], "year": COLUMNS["count"]}, ["y1", "y2"]),
        ({"math score": COLUMNS["number"], "reading score": COLUMNS["count"], "z": 1}, ["math score", "reading score"]),
        ({"Outcome": COLUMNS["flag"], "score": COLUMNS["number"]}, ["Outcome"]),
        ({"number": COLUMNS["number"], "grade": COLUMNS["grade"]}, ["grade"]),
        ({"grade": COLUMNS["grade"], "when": pd.date_range("2020-01-01", periods=120), "id": range(120)}, ["grade"]),
        ({"label": ["one"] * 120, "grade": COLUMNS["grade"]}, ["grade"]),
    ],
)
def test_targets_are_guessed_by_name_else_the_last_column_that_can_be_one(tmp_path, columns, targets):
    study = written(tmp_path, table_of(**columns))
    assert list(study.targets.values()) == [[target] for target in targets]


def test_every_other_column_is_listed_with_its_kind_so_that_the_comment_can_be_taken_over():
    lines = study_text(table_of(grade=COLUMNS["grade"]), "rows.csv", "s").splitlines()
    start = lines.index("  # columns:")
    kinds = [line.replace("  # ", "", 1) for line in lines[start : lines.index("", start)]]
    assert yaml.safe_load("\n".join(kinds)) == {
        "columns": {"age": "numeric", "city: old": "categorical", "since": "date", "nothing": "categorical"}
    }
    assert any("nothing" in line and "left out" in line for line in kinds)


def test_every_commented_key_is_one_that_the_study_accepts(tmp_path):
    text = study_text(table_of(word=COLUMNS["word"], id=[7, 8, 9] * 40), "rows.csv", "s")
    lines = [line for line in text.splitlines() if not line.startswith(("# A study", "# Tasks", "#   polyshot"))]
    uncommented = [re.sub(r"^( *)# ", r"\1", line) for line in lines if "Columns to learn" not in line]
    (tmp_path / "study.yaml").write_text("\n".join(uncommented))
    study = Study.load(tmp_path / "study.yaml")
    assert study.tasks["word"].positive == "yes"
    assert study.data.group == "user_id"
    assert study.search.minutes == 10


@pytest.mark.parametrize("name", ["true", "1e5", "a: b # c", 'say "hi"', "Größe (cm)", "-", "line\nbreak", "123"])
def test_any_column_name_can_be_a_target_or_a_feature(tmp_path, name):
    table = pd.DataFrame({name: np.arange(50.0), "x": [1.5, 2.5] * 25})
    assert list(written(tmp_path, table, name, [name]).targets.values()) == [[name]]
    assert list(written(tmp_path, table, name, ["x"]).targets.values()) == [["x"]]


@pytest.mark.parametrize(
    ("table", "targets", "words"),
    [
        (table_of(), ["agee"], ["targets: the table has no column 'agee'", "Did you mean 'age'?"]),
        (table_of(), ["nothing"], ["'nothing' cannot be a target"]),
        (table_of(), ["since"], ["'since' cannot be a target", "choose one with numbers"]),
        (pd.DataFrame({"a": ["x"] * 9}), None, ["no column of the table can be a target"]),
        (pd.DataFrame({"id": range(90), "y": [1.5, 2.5] * 45}), None, ["no column is left to learn from beside y"]),
    ],
)
def test_a_table_for_which_no_study_can_be_written_is_refused(table, targets, words):
    with pytest.raises(DataError) as caught:
        study_text(table, "rows.csv", "s", targets)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.usefixtures("houses")
def test_init_says_how_several_targets_are_chosen_where_it_guessed_one(polyshot):
    hint = "polyshot init houses.csv --force --target COLUMN --target COLUMN"
    assert hint in polyshot("init", "houses.csv", "-o", "guessed.yaml").out
    chosen = polyshot("init", "houses.csv", "-o", "chosen.yaml", "--target", "price", "--target", "sold")
    assert chosen.out.startswith("Wrote chosen.yaml: price (regression), sold (binary).\nNext:")
    again = polyshot("init", "houses.csv", "-o", "chosen.yaml")
    assert again.code == 2
    assert "chosen.yaml: exists already" in again.err
