"""The study file: ten lines are enough, every mistake is reported at once, in words, with its place."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from polyshot.errors import StudyError
from polyshot.study import Study, json_schema

MINIMAL = """\
name: star
data:
  source: star.csv
tasks:
  read: {kind: regression}
  passed: {kind: binary, weight: 3}
"""


def load(tmp_path, text: str) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return Study.load(path)


def problems(tmp_path, text: str) -> list[str]:
    with pytest.raises(StudyError) as caught:
        load(tmp_path, text)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_six_lines_are_a_study_with_defaults_for_the_rest(tmp_path):
    study = load(tmp_path, MINIMAL)
    assert study.task_weights == {"read": 0.25, "passed": 0.75}
    assert study.targets == {"read": ["read"], "passed": ["passed"]}
    assert study.folder == tmp_path


def test_the_printed_study_is_a_study_file_of_the_same_study(tmp_path):
    study = load(tmp_path, MINIMAL)
    assert load(tmp_path, study.to_yaml()).to_dict() == study.to_dict()


def test_numbers_and_words_are_read_as_people_write_them(tmp_path):
    text = MINIMAL + "training: {optimiser: {learning_rate: 1e-3}}\n" + "seed: 3\n"
    text = text.replace("source: star.csv", "source: star.csv\n  ignore: [no, on, 2020-01-01]")
    study = load(tmp_path, text)
    assert study.training.optimiser.learning_rate == 0.001
    assert study.data.ignore == ["no", "on", "2020-01-01"]


def test_every_mistake_is_reported_at_once_with_its_line(tmp_path):
    text = MINIMAL.replace("kind: binary", "kind: binry").replace("weight: 3", "weight: -1")
    text += "model:\n  encoder: {width: 1.5, dept: 3}\ntrainng: {}\nseed: zero\n"
    found = problems(tmp_path, text)
    assert found == [
        "study.yaml:10 seed: must be a valid integer, got 'zero'",
        "study.yaml:6 tasks.passed: kind must be one of regression, binary, multiclass, multilabel, tokens, got "
        "'binry'. Did you mean 'binary'?",
        "study.yaml:8 model.encoder.width: must be a valid integer, got 1.5",
        "study.yaml:8 model.encoder.dept: unknown key 'dept'. Did you mean 'depth'?",
        "study.yaml:9 trainng: unknown key 'trainng'. Did you mean 'training'?",
    ]


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (("weight: 3", "weight: -1"), "tasks.passed.weight", "greater than or equal to 0"),
        (("weight: 3", "wieght: 3"), "tasks.passed.wieght", "Did you mean 'weight'?"),
        (("name: star", "name: a/b"), "name", "letters, digits"),
        (("name: star", "name: star\nname: moon"), "name", "given twice"),
        (("name: star\n", ""), "name", "is missing"),
        (
            ("tasks:", "storage: s3://key:secret@bucket/runs\ntasks:"),
            "storage",
            "'s3://…@…' holds a user or a password",
        ),
        (("tasks:", "storage: https://host/runs\ntasks:"), "storage", "a web address, which cannot be written"),
        (("tasks:", "storage: 's3://'\ntasks:"), "storage", "'s3://' is no address of a folder in an object store"),
        (("tasks:", "storage: s3://bucket/../other\ntasks:"), "storage", "is no address of a folder"),
        (("read: {kind: regression}", "read: {}"), "tasks.read", "'kind' is missing"),
        (
            ("read: {kind: regression}", "read: {kind: regression, target: passed}"),
            "tasks.read",
            "target column 'passed'",
        ),
        (("source: star.csv", "source: star.csv\n  group: read"), "data.group", "is a target column"),
        (("source: star.csv", "source: star.csv\n  features: [read]"), "data.features", "is the target of task 'read'"),
        (("source: star.csv", "source: star.csv\n  split: {validation: 0.5, test: 0.5}"), "data.split", "less than 1"),
        (("source: star.csv", "source: star.csv\n  arguments: {a: 1}"), "data", "source function"),
        (("source: star.csv", "source: 7"), "data.source", "valid string"),
        (("tasks:", "training: {monitor: read/rsme}\ntasks:"), "training.monitor", "Did you mean 'read/rmse'?"),
        (("tasks:", "scale: {workers: 2, engine: process}\ntasks:"), "scale", "one worker"),
        (("tasks:", "search: {objective: read/rmsle}\ntasks:"), "search.objective", "Did you mean 'read/rmse'?"),
        (("tasks:", "search: {trials: null}\ntasks:"), "search", "never ends"),
        (("tasks:", "search: {space: {seed: {low: 3, high: 1}}}\ntasks:"), "search.space.seed", "above high"),
        (
            ("tasks:", "search: {space: {training.epoch: {low: 1, high: 3}}}\ntasks:"),
            "search.space.training.epoch",
            "Did you mean 'epochs'?",
        ),
        (
            ("tasks:", "search: {space: {model.encoder.dropout: {low: 0, high: 1.5}}}\ntasks:"),
            "search.space.model.encoder.dropout",
            "does not accept 1.5",
        ),
    ],
)
def test_a_mistake_names_its_place_and_the_mend(tmp_path, change, place, words):
    found = problems(tmp_path, MINIMAL.replace(*change))
    assert any(place in problem.split(": ")[0] and words in problem for problem in found), found


def test_weights_that_sum_to_zero_are_refused(tmp_path):
    text = MINIMAL.replace("weight: 3", "weight: 0").replace("{kind: regression}", "{kind: regression, weight: 0}")
    assert any("sum to 0" in problem for problem in problems(tmp_path, text))


def test_bad_yaml_names_the_line(tmp_path):
    assert problems(tmp_path, "name: star\n  data: [\n")[0].startswith("study.yaml:2: is not valid YAML")


def test_a_trial_is_a_study_with_other_values(tmp_path):
    study = load(tmp_path, MINIMAL)
    trial = study.with_values({"tasks.read.weight": 0.5, "training.optimiser.kind": "sgd"})
    assert trial.tasks["read"].weight == 0.5
    # The key of another kind of optimiser starts from that kind's defaults.
    assert study.differences(trial) == {
        "tasks.read.weight": 0.5,
        "training.optimiser.kind": "sgd",
        "training.optimiser.learning_rate": 0.01,
        "training.optimiser.momentum": 0.9,
    }
    assert trial.folder == study.folder
    with pytest.raises(StudyError, match=r"tasks\.reed"):
        study.with_values({"tasks.reed.weight": 0.5})
    with pytest.raises(StudyError, match="'seed' is a value, not a section"):
        study.with_values({"seed.number": 1})


def test_a_single_task_study_leaves_the_other_targets_out_of_its_features(tmp_path):
    alone = load(tmp_path, MINIMAL).single_task("passed")
    assert list(alone.tasks) == ["passed"]
    assert alone.task_weights == {"passed": 1.0}
    assert alone.data.ignore == ["read"]


def test_a_study_of_fewer_tasks_monitors_its_loss_where_the_metric_was_another_task_s(tmp_path):
    study = load(tmp_path, MINIMAL).with_values({"training.monitor": "passed/roc_auc"})
    assert study.single_task("passed").training.monitor == "passed/roc_auc"
    assert study.single_task("read").training.monitor == "loss"


def test_a_digest_changes_with_what_it_covers_and_with_nothing_else(tmp_path):
    study = load(tmp_path, MINIMAL)
    reseeded = study.with_values({"seed": 1})
    assert study.digest("data", "tasks") == reseeded.digest("data", "tasks")
    assert study.digest("seed") != reseeded.digest("seed")


def test_the_json_schema_accepts_what_loads_and_refuses_unknown_keys():
    schema = json_schema()
    values = yaml.safe_load(MINIMAL)
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values | {"trainng": {}}, schema)
    assert json.dumps(schema)


def test_reading_a_study_loads_no_heavy_library(tmp_path):
    (tmp_path / "study.yaml").write_text(MINIMAL)
    code = (
        "import sys; from polyshot import Study; Study.load('study.yaml');"
        "print([m for m in ('torch', 'ray', 'mlflow', 'pandas', 'numpy', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_single_task_study_is_split_as_the_study_it_comes_from(tmp_path):
    study = load(tmp_path, MINIMAL)
    assert study.stratified_by == study.single_task("read").stratified_by == [["passed"]]
    assert study.with_values({"data.group": "school"}).single_task("read").stratified_by == []
    assert study.with_values({"data.split.stratify": False}).stratified_by == []
