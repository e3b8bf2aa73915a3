"""`polyshot train`, from the file to the table, the model and the runs in MLflow."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import STUDY, learnable_table

import polyshot
from polyshot import PolyshotError, Study
from polyshot.progress import Progress
from polyshot.run_folder import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, polyshot.verbs.train.TrainResult]:
    """One training run with baselines, looked at from several sides."""
    folder = tmp_path_factory.mktemp("trained")
    learnable_table().to_csv(folder / "houses.csv", index=False)
    (folder / "study.yaml").write_text(STUDY.replace("epochs: 4", "epochs: 40\n  optimiser: {learning_rate: 0.01}"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        return folder, polyshot.train(Study.load("study.yaml"))
    finally:
        os.chdir(before)


def runs(folder: Path) -> pd.DataFrame:
    from polyshot.tracking.query import runs_table

    return runs_table(Study.load(folder / "study.yaml").with_values({"storage": str(folder / "polyshot-runs")}))


def test_the_table_sets_each_task_beside_its_baseline(trained):
    _, result = trained
    table = result.metrics
    assert list(table["split"]) == ["validation"] * 2 + ["test"] * 2
    assert list(table["task"]) == ["price", "sold"] * 2
    for row in table.itertuples():
        sign = -1 if row.metric == "rmse" else 1
        assert row.improvement == pytest.approx(sign * (row.multi_task - row.single_task) / row.single_task)
    test = table[table["split"] == "test"]
    assert result.improvement == pytest.approx(test["improvement"].mean())
    low, high = result.interval
    assert low < result.improvement < high
    for row in table.itertuples():
        assert row.low < row.improvement < row.high
        assert row.verdict == ("helped" if row.low > 0 else "hurt" if row.high < 0 else "within noise")
    assert result.hurt == list(test[test["verdict"] == "hurt"].sort_values("improvement")["task"])


def test_the_model_has_learnt_and_errs_in_the_target_s_own_units(trained):
    _, result = trained
    test = result.metrics[result.metrics["split"] == "test"].set_index("task")
    spread = learnable_table()["price"].std()
    assert 0.1 * spread < test.loc["price", "multi_task"] < 0.8 * spread
    assert test.loc["sold", "multi_task"] > 0.8


def test_the_saved_model_gives_the_reported_test_metric(trained):
    folder, result = trained
    from polyshot.data.prepare import prepare

    rows = prepare(Study.load(folder / "study.yaml")).rows["test"]
    table = pd.read_csv(folder / "houses.csv").iloc[rows]
    predicted = polyshot.predict(result.folder, table)
    errors = (predicted["price"] - table["price"]).dropna()
    reported = result.metrics.query("split == 'test' and task == 'price'")["multi_task"].item()
    assert (errors**2).mean() ** 0.5 == pytest.approx(reported, rel=1e-4)
    assert set(predicted["sold"]) <= {"yes", "no"}
    assert ((predicted["sold_probability"] > 0.5) == (predicted["sold"] == "yes")).all()


def test_mlflow_has_one_parent_and_one_child_per_baseline_that_says_what_differs(trained):
    folder, result = trained
    table = runs(folder).set_index("run")
    assert sorted(table.index) == ["baseline-price", "baseline-sold", "train-1"]
    assert set(table["status"]) == {"FINISHED"}
    validation = result.metrics.query("split == 'validation' and task == 'price'").iloc[0]
    assert table.loc["train-1", "val/price/rmse"] == pytest.approx(validation["multi_task"])
    assert table.loc["baseline-price", "val/price/rmse"] == pytest.approx(validation["single_task"])
    assert table.loc["train-1", "test/improvement"] == pytest.approx(result.improvement)
    ends = ["test/improvement_low", "test/improvement_high"]
    assert tuple(table.loc["train-1", ends]) == pytest.approx(result.interval)
    assert table.loc["train-1", "val/price/improvement_low"] == pytest.approx(validation["low"])

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/polyshot-runs/mlflow.db")
    parent = client.get_run(result.mlflow_id)
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.mlflow_id}'")
    assert len(children) == 2
    assert parent.data.params["training.epochs"] == "40"
    verdicts = result.metrics.query("split == 'test'").set_index("task")["verdict"]
    assert {task: parent.data.tags[f"verdict.{task}"] for task in verdicts.index} == verdicts.to_dict()
    for child in children:
        assert "training.epochs" not in child.data.params
    curve = client.get_metric_history(result.mlflow_id, "progress/val/loss")
    assert [point.step for point in curve] == list(range(1, len(result.curves) + 1))
    artifacts = {file.path for file in client.list_artifacts(result.mlflow_id)}
    assert {"study.yaml", "metrics.json", "plots"} <= artifacts
    plots = {Path(file.path).name for file in client.list_artifacts(result.mlflow_id, "plots")}
    assert plots == {"learning_curves.png", "improvement.png"}


def test_the_logged_model_predicts_in_a_process_that_never_trained(trained):
    folder, result = trained
    code = (
        "import sys, mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri('sqlite:///{folder}/polyshot-runs/mlflow.db')\n"
        f"model = mlflow.pyfunc.load_model('runs:/{result.mlflow_id}/model')\n"
        "rows = model.input_example\n"
        "assert model.metadata.signature.inputs.input_names() == list(rows.columns)\n"
        "print(model.predict(rows).columns.tolist(), len(rows))\n"
        "assert 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parent, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['price', 'sold', 'sold_probability'] 5"


def test_a_second_run_takes_its_baselines_from_the_cache_and_gives_the_same_metrics(trained, monkeypatch):
    folder, result = trained
    monkeypatch.chdir(folder)
    cached = {path: path.stat().st_mtime for path in (folder / "polyshot-runs/houses/baselines").iterdir()}
    again = polyshot.train(Study.load("study.yaml"))
    assert again.folder.name == "train-2"
    pd.testing.assert_frame_equal(again.metrics, result.metrics)
    assert again.interval == result.interval
    assert {path: path.stat().st_mtime for path in cached} == cached


def test_the_command_prints_the_table_the_verdict_and_what_to_do_next(polyshot, houses):
    shown = polyshot("train", houses)
    assert shown.code == 0, shown.err
    for words in ("price", "rmse", "single task", "multi task", "Δm on test", "95 % interval", "polyshot predict"):
        assert words in shown.out
    assert "Traceback" not in shown.err
    rows = json.loads((houses.parent / "polyshot-runs/houses/train-1/metrics.json").read_text())
    words = {"helped": "Better than alone:", "hurt": "Worse than alone (negative transfer):"}
    for row in rows[2:]:
        [said] = [line for line in shown.out.splitlines() if line.endswith(".") and f" {row['task']}" in line]
        assert said.startswith(words.get(row["verdict"], "Neither, within noise:"))

    predicted = polyshot("predict", "houses", "houses.csv")
    assert predicted.code == 0, predicted.err
    assert predicted.out.splitlines()[0] == "price,sold,sold_probability"
    assert len(predicted.out.splitlines()) == 301

    table = polyshot("compare", houses, "--json").json()
    assert {row["kind"] for row in table} == {"train", "baseline"}


def test_other_rows_under_the_same_study_get_baselines_of_their_own(houses, monkeypatch):
    monkeypatch.chdir(houses.parent)
    study = Study.load(houses).with_values({"training.epochs": 2, "tracking.models": False})
    alone = [polyshot.train(study, table=learnable_table(seed=seed)).metrics["single_task"] for seed in (0, 1)]
    assert (alone[0] != alone[1]).all()


def test_intervals_are_over_groups_where_rows_belong_to_groups(polyshot, houses):
    shown = polyshot("train", houses, "--json", "--set", "data.group=street", "--set", "training.epochs=3")
    rows = polyshot("train", houses, "--set", "data.group=street", "--set", "training.epochs=3")
    assert "over test groups of 'street'" in rows.out
    low, high = shown.json()["interval"]
    assert low < shown.json()["improvement"] < high


def test_json_output_is_for_machines(polyshot, houses):
    result = polyshot("train", houses, "--json", "--no-baselines", "--set", "training.epochs=2")
    assert result.code == 0, result.err
    values = result.json()
    assert values["improvement"] is None
    assert {row["split"] for row in values["metrics"]} == {"validation", "test"}
    assert Path(values["folder"], "model", "weights.pt").exists()


class Told(Progress):
    """Remembers the epochs that were trained."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def advance(self, activity: str, completed: int, words: str = "") -> None:  # noqa: ARG002
        self.epochs.append(completed)


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_result(tmp_path):
    learnable_table().to_csv(tmp_path / "houses.csv", index=False)
    slow = STUDY.replace("epochs: 4", "epochs: 200\n  checkpoint_seconds: 0\n  early_stopping: null")
    (tmp_path / "study.yaml").write_text(slow)
    command = [sys.executable, "-m", "polyshot", "train", "study.yaml", "--no-baselines", "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "polyshot-runs/houses/train-1/checkpoint.pt"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()

    os.chdir(tmp_path)
    study, told = Study.load("study.yaml"), Told()
    resumed = polyshot.train(study, baselines=False, progress=told)
    assert resumed.folder.name == "train-1"
    assert told.epochs[0] > 1 and told.epochs[-1] == len(resumed.curves) == 200
    undisturbed = polyshot.train(study, baselines=False, fresh=True)
    assert undisturbed.folder.name == "train-2"
    pd.testing.assert_frame_equal(resumed.metrics, undisturbed.metrics)
    losses = [column for column in resumed.curves if "loss" in column]
    pd.testing.assert_frame_equal(resumed.curves[losses], undisturbed.curves[losses])


def test_two_processes_do_not_work_on_one_run(houses, monkeypatch):
    monkeypatch.chdir(houses.parent)
    study = Study.load(houses)
    first = RunFolder.open(study, "train", "digest")
    with pytest.raises(PolyshotError, match="another process .* works on this run"):
        RunFolder.open(study, "train", "digest")
    other = RunFolder.open(study, "train", "digest", fresh=True)
    assert (first.key, other.key) == ("train-1", "train-2")
    other.close("finished")
    first.close("failed")
    assert RunFolder.open(study, "train", "digest").key == "train-1"


def _try_to_open(study, digest, together, outcomes):
    together.wait()
    try:
        folder = RunFolder.open(study, "train", digest)  # held until all have tried
        outcomes.put(folder.key)
    except PolyshotError as fault:
        outcomes.put(str(fault))
    together.wait()


def test_of_processes_that_start_one_study_at_once_one_works_and_the_others_say_so(houses, monkeypatch):
    monkeypatch.chdir(houses.parent)
    study, fork = Study.load(houses), multiprocessing.get_context("fork")
    for number in range(1, 11):
        together, outcomes = fork.Barrier(4), fork.SimpleQueue()
        starts = [fork.Process(target=_try_to_open, args=(study, str(number), together, outcomes)) for _ in range(4)]
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        said = [outcomes.get() for _ in starts]
        assert [
            words for words in said if not re.search(r"another process \(process \d+\) works on this run", words)
        ] == [f"train-{number}"]


def test_a_table_in_memory_takes_the_place_of_the_source(houses, monkeypatch):
    monkeypatch.chdir(houses.parent)
    study = Study.load(houses).with_values({"data.source": "nowhere.csv", "training.epochs": 2})
    result = polyshot.train(study, table=learnable_table(seed=1), baselines=False)
    assert len(result.curves) == 2
