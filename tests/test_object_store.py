"""Verbs whose storage is an object store's: moto's server, to which s3fs speaks as to S3.

Another machine is another working copy: what a verb finds there has come through the store.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import STUDY, learnable_table
from helpers_store import Bucket, Steps, interrupt

import polyshot as api
from polyshot import working_copy
from polyshot.errors import ResourceError
from polyshot.run_folder import RunFolder
from polyshot.study import Study

pytest_plugins = ("helpers_store",)
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def make(folder: Path, bucket: Bucket, **values: Any) -> Study:
    """The study of houses, with its runs in the bucket."""
    learnable_table(120).to_csv(folder / "houses.csv", index=False)
    (folder / "study.yaml").write_text(STUDY)
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    tiny = {"training.early_stopping": None, "training.checkpoint_seconds": 0.0, "storage": bucket.storage}
    study = Study.load(folder / "study.yaml").with_values(tiny | dotted)
    (folder / "study.yaml").write_text(study.to_yaml())
    return Study.load(folder / "study.yaml")


def die() -> None:
    """As a machine does, some time after its last upload."""
    working_copy.settle()
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], object]) -> None:
    """Do the work in a process that dies of it."""
    if (process := os.fork()) == 0:
        with suppress(BaseException):
            work()
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL


# --- one machine after the other -------------------------------------------------------------------------------------


def test_a_training_goes_on_on_a_machine_with_an_empty_disk(bucket, tmp_path, polyshot):
    study = make(tmp_path, bucket, training__epochs=60)
    killed(lambda: api.train(study, baselines=False, progress=Steps("multi-task model", 30, die)))
    assert json.loads(bucket.read("houses/train-1/run.json"))["status"] == "running"

    bucket.on("two")
    steps = Steps("multi-task model")
    resumed = api.train(study, baselines=False, progress=steps)
    assert resumed.folder == study.storage_folder / "train-1"
    assert steps.seen[0] in (29, 30) and len(resumed.curves) == 60  # the last may have been told and not saved
    undisturbed = api.train(study, baselines=False, fresh=True)
    assert undisturbed.folder.name == "train-2"
    pd.testing.assert_frame_equal(resumed.metrics, undisturbed.metrics)
    losses = [column for column in resumed.curves if "loss" in column]
    pd.testing.assert_frame_equal(resumed.curves[losses], undisturbed.curves[losses])

    # Who only reads has it on any machine as well.
    rows = learnable_table(20, seed=1)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    expected = resumed.model.predict(rows)
    home = bucket.on("three")
    read = polyshot("predict", "houses/train-1", "rows.csv", "--storage", bucket.storage, "--json")
    assert read.code == 0, read.err
    assert [row["sold"] for row in read.json()] == list(expected["sold"])
    assert not (home / "houses" / "train-2").exists() and not (home / "houses" / "train-1" / "checkpoint.pt").exists()
    bucket.on("four")
    newest = api.predict(str(tmp_path / "study.yaml"), rows)
    assert list(newest["sold"]) == list(undisturbed.model.predict(rows)["sold"])
    assert polyshot("watch", "houses", "--storage", bucket.storage).code == 0
    page = polyshot("report", "houses/train-1", "--storage", bucket.storage)
    assert page.code == 0 and Path(page.out.strip()).is_file(), page.err
    assert polyshot("features", "houses", "rows.csv", "-o", "f.csv", "--storage", bucket.storage).code == 0


def test_a_search_goes_on_on_a_machine_with_an_empty_disk_and_repeats_no_trial(bucket, tmp_path):
    from optuna.trial import TrialState

    from polyshot.searching.searcher import open_study
    from polyshot.verbs.search import search

    study = make(
        tmp_path, bucket, training__epochs=8, search__trials=6, search__pack=2, search__sampler="random",
        search__scheduler="none",
    )  # fmt: skip

    def ended() -> dict[int, tuple]:
        journal = study.storage_folder / "search-1" / "optuna.journal"
        assert working_copy.has(journal)
        trials = open_study(study, journal, "maximize").trials
        return {t.number: (t.params, t.value, t.datetime_complete) for t in trials if t.state == TrialState.COMPLETE}

    killed(lambda: search(study, progress=Steps("search", 3, die)))
    bucket.on("look")
    before = ended()
    assert 2 <= len(before) < 6

    bucket.on("two")
    steps = Steps("search")
    result = search(study, progress=steps)
    assert steps.seen[0] == len(before)
    after = ended()
    assert list(after) == list(range(6)) and {number: after[number] for number in before} == before
    assert len(bucket.names("houses/search-1/trials")) == 3  # those of the best, whichever machine they were trained on

    bucket.on("three")
    read = search(study)  # and not done again
    assert read.best_trial == result.best_trial
    pd.testing.assert_frame_equal(read.trials, result.trials)
    pd.testing.assert_frame_equal(read.metrics, result.metrics)


def test_a_meta_training_goes_on_on_a_machine_with_an_empty_disk(bucket):
    from polyshot.verbs.adapt import find_learner
    from polyshot.verbs.meta import ACTIVITY, meta_learn

    study = Study.from_dict(
        {
            "name": "waves",
            "storage": bucket.storage,
            "model": {"encoder": {"width": 16}},
            "meta": {
                "episodes": {"kind": "sinusoids", "test_query": 20},
                "learner": {"kind": "first_order_maml", "rate": 0.02, "steps": 1},
                "tasks_per_batch": 4,
                "iterations": 120,
                "validate_every": 20,
                "validation_tasks": 10,
                "test_tasks": 10,
                "test_steps": 1,
                "compile": "never",
            },
            "training": {"checkpoint_seconds": 0.0},
            "scale": {"device": "cpu"},
        }
    )

    with pytest.raises(KeyboardInterrupt):
        meta_learn(study, baselines=False, progress=Steps(ACTIVITY, 80, interrupt))
    bucket.on("two")
    steps = Steps(ACTIVITY)
    resumed = meta_learn(study, baselines=False, progress=steps)
    assert resumed.folder.name == "meta-1" and steps.seen[0] == 80
    undisturbed = meta_learn(study, baselines=False, fresh=True)
    pd.testing.assert_frame_equal(resumed.table, undisturbed.table)
    bucket.on("three")
    assert find_learner("waves", bucket.storage) == study.storage_folder / "meta-2" / "learner"


def test_a_folder_can_be_looked_into_while_another_verb_tries_the_store(bucket: Bucket) -> None:
    """It writes an object and removes it, and a folder with nothing else in it comes and goes with that."""
    folder = bucket.on("one") / "houses"
    over = threading.Event()

    def check() -> None:
        while not over.is_set():
            working_copy.check(folder)

    other = threading.Thread(target=check)
    other.start()
    try:
        seen = [working_copy.names(folder) for _ in range(150)]
    finally:
        over.set()
        other.join()
    probe = {f".polyshot-{os.getpid()}"}
    assert set() in seen and probe in seen and set().union(*seen) == probe


# --- a store that is away --------------------------------------------------------------------------------------------


def test_a_store_that_is_away_for_a_while_has_all_in_the_end(bucket, server, tmp_path):
    study = make(tmp_path, bucket, training__epochs=30)

    class Away(Steps):
        def advance(self, activity: str, completed: int, words: str = "") -> None:
            super().advance(activity, completed, words)
            if self.seen and completed == 20:
                server.start()

    steps = Away("multi-task model", 10, server.stop)
    result = api.train(study, baselines=False, progress=steps)
    assert not [note for note in steps.notes if note.startswith("storage")]
    assert json.loads(bucket.read("houses/train-1/run.json"))["status"] == "finished"
    bucket.on("two")
    rows = learnable_table(20, seed=1)
    read = api.predict("houses", rows, storage=bucket.storage)
    pd.testing.assert_frame_equal(read, result.model.predict(rows))


def test_a_store_that_stays_away_costs_no_training_and_is_told_of_at_the_end(bucket, server, tmp_path, monkeypatch):
    monkeypatch.setattr(working_copy, "_SETTLING_SECONDS", 3.0)
    study = make(tmp_path, bucket)
    steps = Steps("multi-task model", 2, server.stop)
    try:
        result = api.train(study, baselines=False, progress=steps)
    finally:
        server.start()
    assert len(result.curves) == 4
    (note,) = [note for note in steps.notes if note.startswith("storage")]
    assert bucket.storage in note and "could not be brought up to date" in note
    assert working_copy.settle() is None  # it is back before the process has ended
    assert bucket.has("houses/train-1/model/weights.pt")


def test_a_store_that_cannot_be_used_is_said_before_anything_is_trained(bucket, tmp_path, polyshot, monkeypatch):
    make(tmp_path, bucket)
    none = polyshot("search", "study.yaml", "--set", "storage=s3://no-such-bucket/runs")
    assert none.code == 2 and none.err.splitlines()[-1].startswith("error: storage: s3://no-such-bucket/runs")
    none = polyshot("train", "study.yaml", "--no-baselines", "--set", "storage=s3://no-such-bucket/runs")
    assert none.code == 2 and "see that the bucket is there" in none.err and "Traceback" not in none.err
    assert "multi-task model" not in none.err

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ResourceError, match=r"^storage: s3://away/runs/houses cannot be used \(Could not connect"):
        RunFolder.open(make(tmp_path, bucket, storage="s3://away/runs"), "train", "digest")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ResourceError, match="credentials"):
        working_copy.check(working_copy.folder_of("s3://unknown/runs"))


def test_check_says_where_runs_and_the_store_of_mlflow_are(bucket, tmp_path, polyshot):
    make(tmp_path, bucket)
    said = polyshot("check", "study.yaml").err
    assert (
        f"# runs are kept at {bucket.storage}/houses; this machine works on a copy, in {tmp_path}/machines/one/" in said
    )
    assert "# MLflow's store stays on this machine: " in said
    assert "MLflow" not in polyshot("check", "study.yaml", "--set", "tracking={uri: 'http://host:5000'}").err
