"""`polyshot meta` and `polyshot adapt`, from a study file to a model that predicts."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polyshot.errors import DataError, RunError
from polyshot.meta.episodes import build_source
from polyshot.meta.saved import SavedLearner
from polyshot.meta.training import MetaRun
from polyshot.progress import Progress
from polyshot.saved_model import SavedModel, write_model
from polyshot.study import Study
from polyshot.verbs.adapt import adapt, find_learner
from polyshot.verbs.meta import MetaResult, meta_learn
from polyshot.verbs.train import train


def schools(count: int = 40, seed: int = 0, slope: float | None = None) -> pd.DataFrame:
    """Scores that rise or fall with the hours of work, by school."""
    random = np.random.default_rng(seed)
    school = np.repeat(np.arange(count), 16)
    slopes = np.repeat(random.choice([-1.0, 1.0], count) if slope is None else np.full(count, slope), 16)
    hours = random.normal(5, 2, len(school))
    score = 50 + 10 * slopes * (hours - 5) + random.normal(0, 1, len(school))
    return pd.DataFrame({"school": school, "hours": hours, "score": score, "passed": np.where(score > 50, "yes", "no")})


def school_study(folder: Path, **values: Any) -> Study:
    return Study.from_dict(
        {
            "name": "schools",
            "storage": str(folder / "runs"),
            "data": {"source": "schools.csv", "group": "school", "features": ["hours"]},
            "tasks": {"score": {"kind": "regression"}, "passed": {"kind": "binary"}},
            "model": {"encoder": {"width": 16}},
            "meta": {
                "episodes": {"support": 5, "query": 8},
                "learner": {"kind": "maml", "rate": 0.1, "steps": 2},
                "iterations": 300,
                "validate_every": 100,
                "test_tasks": 60,
                "test_steps": 3,
                "learning_rate": 0.01,
            },
            "scale": {"device": "cpu"},
        }
    ).with_values(values)


def trained(study: Study, table: pd.DataFrame | None = None) -> SavedLearner:
    """The study's learner, saved nowhere."""
    source = build_source(study, table)
    run = MetaRun(study, source)
    list(run.epochs())
    return SavedLearner.of(study, source, run.best_weights())


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> MetaResult:
    return meta_learn(school_study(tmp_path_factory.mktemp("meta")), table=schools())


def test_the_protocol_shows_the_learner_beside_what_it_has_to_beat(learnt: MetaResult) -> None:
    steps = learnt.table.groupby("method", sort=False)["step"].apply(list).to_dict()
    assert next(iter(steps)) == "meta-learnt" and steps["meta-learnt"] == [0, 1, 2, 3]
    assert len(steps) == 5
    verdicts = learnt.verdicts.set_index("method")
    # The slope changes its sign from school to school: without adapting nothing can be known.
    own = learnt.table[learnt.table["method"] == "meta-learnt"]
    assert own["mean"].iloc[2] < 0.5 * own["mean"].iloc[0]
    assert verdicts.loc["pre-trained then fine-tuned", "difference"] > verdicts["interval"].iloc[1]


def test_all_is_in_mlflow(learnt: MetaResult) -> None:
    from mlflow import MlflowClient

    from polyshot.tracking.store import resolve

    client = MlflowClient(resolve(Study.load(learnt.folder / "study.yaml")).uri)
    run = client.get_run(learnt.mlflow_id)
    assert run.data.tags["polyshot.kind"] == "meta"
    own = learnt.table[learnt.table["method"] == "meta-learnt"].set_index("step")
    assert run.data.metrics["test/score/mse"] == pytest.approx(own.loc[2, "mean"])
    curve = client.get_metric_history(learnt.mlflow_id, "adaptation/meta-learnt/mse")
    assert [point.value for point in sorted(curve, key=lambda point: point.step)] == pytest.approx(list(own["mean"]))
    assert any(artifact.path == "plots/adaptation.png" for artifact in client.list_artifacts(learnt.mlflow_id, "plots"))
    assert {artifact.path for artifact in client.list_artifacts(learnt.mlflow_id)} >= {"learner", "adaptation.json"}


class Looks(Progress):
    """Remembers after which updates the run was looked at; its process is killed at one of them, if one is given."""

    def __init__(self, fatal: int | None = None):
        self.fatal = fatal
        self.seen: list[int] = []

    def advance(self, activity: str, completed: int, words: str = "") -> None:  # noqa: ARG002
        self.seen.append(completed)
        if completed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_was_killed_goes_on_where_it_was_to_the_same_result(learnt: MetaResult, tmp_path: Path) -> None:
    values = {"storage": str(tmp_path / "runs"), "training.checkpoint_seconds": 0}
    study = Study.load(learnt.folder / "study.yaml").with_values(values)
    if (process := os.fork()) == 0:
        with suppress(BaseException):
            meta_learn(study, table=schools(), baselines=False, progress=Looks(fatal=200))
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    looks = Looks()
    resumed = meta_learn(study, table=schools(), baselines=False, progress=looks)
    assert (resumed.folder.name, looks.seen[0]) == ("meta-1", 200)  # had been told, and not saved
    pd.testing.assert_frame_equal(resumed.curves, learnt.curves)
    own = learnt.table[learnt.table["method"] == "meta-learnt"]
    pd.testing.assert_frame_equal(resumed.table, own)


def test_a_new_school_is_adapted_to_and_predicted(learnt: MetaResult, tmp_path: Path, polyshot) -> None:
    support, rest = schools(1, seed=5, slope=-1.0).iloc[:6], schools(1, seed=6, slope=-1.0)
    support.to_csv(tmp_path / "support.csv", index=False)
    rest.drop(columns=["score", "passed"]).to_csv(tmp_path / "rows.csv", index=False)
    done = polyshot("adapt", learnt.folder, "support.csv")
    assert done.code == 0 and "adapted to 6 labelled rows" in done.out, done.err
    folder = learnt.folder.parent / "adapt-1"
    done = polyshot("predict", folder, "rows.csv", "--json")
    predicted = pd.DataFrame(done.json())["score"]
    assert np.corrcoef(predicted, rest["score"])[0, 1] > 0.9
    # The model is the learner's own state: the same numbers.
    learner = SavedLearner.load(find_learner(str(learnt.folder), tmp_path))
    table = learner.table
    assert table is not None
    made = learner.adapt(table.features.transform(support), table.target.encode(support["score"]))
    own = made.predict(table.features.transform(rest)) * table.target.scale + table.target.mean
    np.testing.assert_allclose(predicted, own, rtol=1e-4)


def test_an_adapted_model_is_an_mlflow_model(learnt: MetaResult) -> None:
    import mlflow

    from polyshot.tracking.store import resolve

    result = adapt(learnt.folder, schools(1, seed=7).iloc[:5])
    study = Study.load(learnt.folder / "study.yaml")
    mlflow.set_tracking_uri(resolve(study).uri)
    model = mlflow.pyfunc.load_model(f"runs:/{result.mlflow_id}/model")
    rows = schools(1, seed=8)[["hours"]]
    np.testing.assert_allclose(model.predict(rows)["score"], result.model.predict(rows)["score"])


@pytest.mark.parametrize("kind", ["ridge", "anil", "protonet"])
def test_classes_of_a_table_are_predicted_after_adapting(kind: str, tmp_path: Path) -> None:
    values = {"meta.learner.kind": kind, "meta.episodes.task": "passed", "meta.iterations": 200}
    learner = trained(school_study(tmp_path, **values), schools())
    support, rest = schools(1, seed=5, slope=-1.0).iloc[:8], schools(1, seed=6, slope=-1.0)
    predicted = learner.adapt_table(support).predict(rest)
    assert (predicted["passed"] == rest["passed"]).mean() > 0.7
    assert predicted["passed_probability"].between(0, 1).all()


@pytest.mark.parametrize(
    "values",
    [
        {"meta.learner.adapts": "lora"},
        {"meta.learner.adapts": "adapters"},
        {"meta.learner.per_step_norm": True, "model.encoder.normalisation": "batch"},
    ],
    ids=["lora", "adapters", "a norm per step"],
)
def test_every_kind_of_adapted_network_is_saved_as_it_is(values: dict[str, Any], tmp_path: Path) -> None:
    learner = trained(school_study(tmp_path, **values), schools())
    support, rest = schools(1, seed=5, slope=-1.0).iloc[:6], schools(1, seed=6, slope=-1.0)
    made, table = learner.adapt_table(support), learner.table
    assert table is not None
    write_model(tmp_path / "model", made, table.example)
    predicted = SavedModel.load(tmp_path / "model").predict(rest)["score"]
    assert np.corrcoef(predicted, rest["score"])[0, 1] > 0.9
    adapted = learner.adapt(table.features.transform(support), table.target.encode(support["score"]))
    own = adapted.predict(table.features.transform(rest)) * table.target.scale + table.target.mean
    np.testing.assert_allclose(predicted, own, rtol=1e-4)


def test_a_network_that_normalises_by_the_rows_at_hand_is_saved_as_no_model(tmp_path: Path) -> None:
    values = {"model.encoder.normalisation": "batch", "meta.iterations": 1}
    with pytest.raises(RunError, match="per_step_norm"):
        trained(school_study(tmp_path, **values), schools()).adapt_table(schools(1))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (schools(1).drop(columns="score"), "no column 'score'"),
        (schools(1).assign(score=np.nan), "no label"),
        (schools(1).drop(columns="hours"), "hours"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_named(learnt: MetaResult, rows: pd.DataFrame, words: str) -> None:
    with pytest.raises(DataError, match=words):
        learnt.learner.adapt_table(rows)


def test_meta_training_starts_from_the_encoder_of_a_multi_task_run(tmp_path: Path) -> None:
    study = school_study(tmp_path, **{"training.epochs": 3, "meta.learning_rate": 1e-9, "meta.iterations": 1})
    together = train(study, table=schools(), baselines=False)
    started = meta_learn(
        study.with_values({"meta.start": str(together.folder)}), table=schools(), baselines=False
    ).learner
    encoder = together.model.model.sharing.encoder.state_dict()
    for name, value in encoder.items():
        torch.testing.assert_close(started.weights[f"body.{name}"], value, atol=1e-6, rtol=0)
    other = study.with_values({"meta.start": str(together.folder), "model.encoder.width": 8})
    with pytest.raises(RunError, match="another encoder"):
        meta_learn(other, table=schools())
    other = study.with_values({"meta.start": str(together.folder), "data.split.seed": 1})
    with pytest.raises(RunError, match="another way"):
        meta_learn(other, table=schools())


def test_a_run_without_a_learner_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="polyshot meta"):
        find_learner("nothing", tmp_path)


# --- learners of classes, from Python --------------------------------------------------------------------------------


def clusters(ways: int, shots: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat([f"class {way}" for way in range(ways)], shots)
    centres = np.repeat(random.normal(0, 3, (ways, 4)), shots, axis=0)
    return (centres + random.normal(0, 0.3, centres.shape)).astype(np.float32), labels


CLASS_LEARNERS: dict[str, dict[str, Any]] = {
    "maml": {"kind": "maml", "rate": 0.1, "steps": 5},
    "anil with a zero head": {"kind": "anil", "rate": 0.5, "steps": 20, "zero_head": True},
    "protonet": {"kind": "protonet"},
}


def class_learner(name: str, tmp_path: Path) -> SavedLearner:
    (tmp_path / "sources.py").write_text(
        "import numpy as np\n"
        "def clusters():\n"
        "    random = np.random.default_rng(0)\n"
        "    labels = np.repeat(np.arange(40), 8)\n"
        "    rows = np.repeat(random.normal(0, 3, (40, 4)), 8, axis=0) + random.normal(0, 0.3, (320, 4))\n"
        "    return rows, labels\n"
    )
    (tmp_path / "study.yaml").write_text(
        json.dumps(
            {
                "name": "clusters",
                "storage": str(tmp_path / "runs"),
                "model": {"encoder": {"width": 16}},
                "meta": {
                    "episodes": {"kind": "classes", "source": "sources:clusters", "ways": 3, "shots": 3, "query": 3},
                    "learner": CLASS_LEARNERS[name],
                    "iterations": 400,
                    "validate_every": 200,
                    "test_tasks": 50,
                },
                "scale": {"device": "cpu"},
            }
        )
    )
    return trained(Study.load(tmp_path / "study.yaml"))


@pytest.mark.parametrize("name", CLASS_LEARNERS)
def test_classes_keep_their_names_and_other_numbers_of_ways_are_clear(name: str, tmp_path: Path) -> None:
    learner = class_learner(name, tmp_path)
    for ways in (2, 3):
        made = learner.adapt(*clusters(ways, 3))
        assert (made.predict(clusters(ways, 3)[0]) == clusters(ways, 3)[1]).mean() > 0.8
    if name != "maml":
        made = learner.adapt(*clusters(7, 3))
        assert (made.predict(clusters(7, 3)[0]) == clusters(7, 3)[1]).mean() > 0.8
    else:
        with pytest.raises(DataError, match="7 classes and the learner was trained to tell 3"):
            learner.adapt(*clusters(7, 3))
    with pytest.raises(DataError, match="one class only"):
        learner.adapt(*clusters(1, 3))
    with pytest.raises(DataError, match=r"inputs \[9, 2\]"):
        learner.adapt(clusters(3, 3)[0][:, :2], clusters(3, 3)[1])
    with pytest.raises(RunError, match="not trained on the groups of a table"):
        learner.adapt_table(schools(1))
