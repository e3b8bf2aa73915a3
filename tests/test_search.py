"""Searches under a real Ray: what they find, what they survive, and how they go on."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import STUDY, learnable_table
from optuna.trial import TrialState

from polyshot.data.prepare import prepare
from polyshot.errors import ResourceError, RunError, TrackingError
from polyshot.progress import Progress
from polyshot.searching.searcher import open_study
from polyshot.searching.starts import starts
from polyshot.study import Study
from polyshot.training.baselines import train_baselines
from polyshot.training.checkpoint import load_checkpoint
from polyshot.verbs.search import SearchResult, saved_result, search

PARTS = """\
import os
import pathlib
import signal
import time

import torch


class Encoder(torch.nn.Module):
    outputs = 8

    def __init__(self, inputs, fate="train", log=None, driver=None):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, 8)
        self.fate = fate
        self.is_slow = driver not in (None, os.getpid())
        if log is not None:
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {fate}\\n")

    def forward(self, features):
        if self.fate == "raise":
            raise ValueError("a fault in the encoder")
        if self.fate == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.is_slow:
            time.sleep(0.1)
        return torch.relu(self.linear(features)) * (float("nan") if self.fate == "diverge" else 1)


FATES = ["train", "raise", "train", "diverge", "train", "die", "train", "train"]


def fates(trial, study):
    options = {"log": study.model.encoder.options["log"], "fate": FATES[trial.number % 8]}
    return {
        "model.encoder.options": options,
        "training.optimiser.learning_rate": trial.suggest_float("rate", 1e-3, 1e-1, log=True),
    }
"""


class Seen(Progress):
    """Remembers what a verb told."""

    def __init__(self):
        self.steps: list[tuple[int, str]] = []
        self.bests: list[dict[str, float]] = []
        self.bests_of_any: list[dict[str, float]] = []

    def advance(self, activity: str, completed: int, words: str = "") -> None:
        if activity == "search":
            self.steps.append((completed, words))

    def best(self, values: dict[str, float], of_any: dict[str, float]) -> None:
        self.bests.append(dict(values))
        self.bests_of_any.append(dict(of_any))


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One Ray for the searches of this module: to start one takes longer than most of them."""
    import ray

    from polyshot.cluster.ray import ray_session

    base = Study.from_dict({"name": "s", "data": {"source": "t.csv"}, "tasks": {"a": {"kind": "regression"}}})
    with ray_session(base):
        yield
    assert not ray.is_initialized()


def make(folder: Path, **values) -> Study:
    """The study of houses in `folder`, with other values (`search__trials=3`)."""
    learnable_table().to_csv(folder / "houses.csv", index=False)
    (folder / "trial_parts.py").write_text(PARTS)
    (folder / "study.yaml").write_text(STUDY)
    dotted = {key.replace("__", "."): value for key, value in values.items()}
    return Study.load(folder / "study.yaml").with_values({"storage": str(folder / "runs")} | dotted)


def child_runs(study: Study) -> pd.DataFrame:
    from polyshot.tracking.query import runs_table

    return runs_table(study)


# --- one search, looked at from all sides ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Study, SearchResult, Seen]:
    study = make(  # one at a time: what is stopped does not depend on which of two is faster
        tmp_path_factory.mktemp("whole"),
        search__trials=8, search__grace_epochs=1, search__concurrency=1, training__epochs=8,
    )  # fmt: skip
    seen = Seen()
    return study, search(study, progress=seen), seen


def test_a_search_gives_its_trials_best_first(whole):
    study, result, _ = whole
    assert sorted(result.trials["number"]) == list(range(8))
    finished = result.trials[result.trials["state"] == "finished"]
    assert finished["improvement"].is_monotonic_decreasing
    assert result.trials["state"].iloc[0] == "finished"
    assert (finished["epochs"] == 8).all()
    weights = result.trials[["tasks.price.weight", "tasks.sold.weight"]]
    assert weights.sum(axis=1).round(9).eq(1).all()
    assert weights.drop_duplicates().shape == (8, 2)
    assert set(result.trials["state"]) <= {"finished", "stopped"}
    assert result.best_study == study.with_values(result.best_values)


def test_asha_stops_trials_that_lag_behind_at_rungs_and_nowhere_else(whole):
    _, result, _ = whole
    stopped = result.trials[result.trials["state"] == "stopped"]
    assert len(stopped) >= 1
    assert (stopped["stopped"] == "asha").all()
    assert set(stopped["epochs"]) <= {1, 4}
    assert result.trials["state"].eq("finished").any()


def test_the_model_is_that_of_the_best_trial_and_no_training_was_needed_for_it(whole):
    study, result, _ = whole
    best = result.trials.iloc[0]
    validation = result.metrics[result.metrics["split"] == "validation"].set_index("task")
    assert validation.loc["price", "multi_task"] == pytest.approx(best["price/rmse"], rel=1e-6)
    assert validation.loc["sold", "multi_task"] == pytest.approx(best["sold/roc_auc"], rel=1e-6)
    assert set(result.metrics["split"]) == {"validation", "test"}

    from polyshot.saved_model import SavedModel

    table = learnable_table()
    predicted = SavedModel.load(result.folder / "model").predict(table)
    from polyshot.data.split import split_rows

    rows = split_rows(table, study)["test"]
    errors = (predicted["price"] - table["price"]).iloc[rows].dropna()
    test = result.metrics[result.metrics["split"] == "test"].set_index("task")
    assert math.sqrt((errors**2).mean()) == pytest.approx(test.loc["price", "multi_task"], rel=1e-4)


def test_the_improvement_is_over_single_tasks_trained_with_the_best_trials_settings(whole):
    _, result, _ = whole
    test = result.metrics[result.metrics["split"] == "test"].set_index("task")
    assert (test["single_task"] != test["single_task_tuned"]).all()
    price = test.loc["price"]
    expected = (price["single_task_tuned"] - price["multi_task"]) / price["single_task_tuned"]
    assert price["improvement"] == pytest.approx(expected, rel=1e-6)
    assert result.improvement == pytest.approx(test["improvement"].mean(), rel=1e-6)
    assert result.hurt == test[test["verdict"] == "hurt"].sort_values("improvement").index.tolist()
    assert result.interval[0] < result.improvement < result.interval[1]


def test_checkpoints_of_the_best_trials_only_stay_on_disk(whole):
    _, result, _ = whole
    kept = {int(folder.name.removeprefix("trial-")) for folder in (result.folder / "trials").iterdir()}
    best = result.trials[:3]  # of those that were stopped, some never came to write one
    assert set(best[best["state"] == "finished"]["number"]) <= kept <= set(best["number"])


def test_every_trial_and_baseline_is_a_run_under_the_searchs(whole):
    study, result, _ = whole
    runs = child_runs(study).set_index("run")
    assert set(runs[runs["kind"] == "trial"].index) == {f"trial {number:04d}" for number in range(8)}
    assert (runs.loc[runs["kind"] == "trial", "parent"] == "search-1").all()
    assert (runs["kind"] == "baseline").sum() == 4
    assert (runs.loc[runs["kind"] == "baseline", "duration_seconds"] > 0.01).all()  # of the training, not of its record
    states = {"finished": "FINISHED", "stopped": "KILLED"}
    for trial in result.trials.to_dict(orient="records"):
        run = runs.loc[f"trial {trial['number']:04d}"]
        assert run["status"] == states[trial["state"]]
        assert run["duration_seconds"] == pytest.approx(trial["seconds"], abs=2e-3)
        assert run["objective"] == run["val/improvement"] == pytest.approx(trial["improvement"])
        assert run["val/sold/roc_auc"] == pytest.approx(trial["sold/roc_auc"])
        assert float(run["training.optimiser.learning_rate"]) == trial["training.optimiser.learning_rate"]
    assert runs.loc["search-1", "test/improvement"] == pytest.approx(result.improvement)
    assert runs.loc["search-1", "status"] == "FINISHED"


def test_a_saved_view_shows_the_trials_best_first_with_what_was_searched(whole):
    from mlflow.tracking import MlflowClient

    from polyshot.tracking.store import resolve

    study, result, _ = whole
    tags = MlflowClient(resolve(study).uri).get_experiment_by_name("houses").tags
    view = json.loads(tags["mlflow.sharedViewState.search-1"])
    state = json.loads(view["state"])
    assert view["name"] == "search-1" and result.mlflow_id in state["searchFilter"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`objective`", False)
    searched = {f"params.`{key}`" for key in result.best_values}
    assert searched | {"metrics.`val/price/rmse`", "metrics.`val/sold/roc_auc`"} < set(state["selectedColumns"])


def test_learning_curves_have_every_epoch_once(whole):
    study, result, _ = whole
    for number, steps in curves(study).items():
        epochs = int(result.trials.set_index("number").loc[number, "epochs"])
        assert steps == list(range(1, epochs + 1))


def curves(study: Study) -> dict[int, list[int]]:
    """The epochs of each trial's learning curve as MLflow has them."""
    from mlflow.tracking import MlflowClient

    from polyshot.tracking.store import resolve

    client = MlflowClient(resolve(study).uri)
    runs = child_runs(study)
    trials = runs[runs["kind"] == "trial"]
    return {
        int(name.removeprefix("trial ")): sorted(
            point.step for point in client.get_metric_history(run_id, "progress/val/loss")
        )
        for run_id, name in trials["run"].items()
    }


def test_progress_counts_trials_and_shows_what_the_best_one_reached(whole):
    _, result, seen = whole
    assert [completed for completed, _ in seen.steps] == list(range(9))
    assert seen.steps[-1][1].startswith(f"{(result.trials['state'] == 'finished').sum()} done")
    best = result.trials.iloc[0]
    assert seen.bests[-1]["price/rmse"] == best["price/rmse"]
    assert seen.bests[-1]["improvement"] == pytest.approx(best["improvement"])
    assert seen.bests_of_any[-1]["price/rmse"] == result.trials["price/rmse"].min()  # of stopped ones as well
    assert seen.bests_of_any[-1]["sold/roc_auc"] == result.trials["sold/roc_auc"].max()
    assert "minutes left" in seen.steps[-3][1] and "minutes left" not in seen.steps[-1][1]


def test_plots_of_the_search_are_among_its_artifacts(whole):
    from mlflow.tracking import MlflowClient

    from polyshot.tracking.store import resolve

    study, result, _ = whole
    artifacts = MlflowClient(resolve(study).uri).list_artifacts(result.mlflow_id, "plots")
    names = {Path(artifact.path).stem for artifact in artifacts}
    learned = {"parameter_importances", "slices", "contour"}
    assert names == {"search_history", "learning_curves", "improvement"} | learned


def test_a_search_whose_budget_is_used_returns_what_it_found_at_once(whole):
    study, result, _ = whole
    seen = Seen()
    again = search(study, progress=seen)
    assert seen.steps == []
    pd.testing.assert_frame_equal(again.trials, result.trials)
    assert (again.folder, again.best_values, again.mlflow_id) == (result.folder, result.best_values, result.mlflow_id)


def test_a_newer_search_that_was_interrupted_comes_before_what_an_older_one_found(whole):
    study, result, _ = whole
    newer = result.folder.with_name("search-2")
    newer.mkdir()
    state = json.loads((result.folder / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps(state | {"status": "running"}))
    try:
        assert saved_result(study, state["digest"]) is None
    finally:
        shutil.rmtree(newer)
    assert saved_result(study, state["digest"]).folder == result.folder


def test_an_earlier_searchs_best_point_is_found_on_disk_and_in_mlflow(whole):
    study, result, _ = whole
    found = starts(study.with_values({"search.start": [str(result.folder), "mlflow:houses"]}))
    on_disk, in_mlflow = found.values()
    assert on_disk.keys() == in_mlflow.keys() >= {"share.price", "log2(training.batch_size)"}
    assert on_disk == pytest.approx(in_mlflow)
    with pytest.raises(TrackingError, match=r"search.start.0.*'nowhere'|no runs of experiment 'nowhere'"):
        starts(study.with_values({"search.start": ["mlflow:nowhere"]}))


def test_a_larger_budget_goes_on(whole):
    study, result, _ = whole
    larger = search(study.with_values({"search.trials": 10}))
    assert larger.folder == result.folder
    before = result.trials.set_index("number").sort_index()
    after = larger.trials.set_index("number").sort_index()
    assert list(after.index) == list(range(10))
    pd.testing.assert_frame_equal(after.loc[before.index, before.columns], before, check_dtype=False)
    assert after["training.optimiser.learning_rate"].nunique() == 10


# --- several objectives ----------------------------------------------------------------------------------------------


def test_a_search_of_several_objectives_gives_those_that_none_beats_and_one_that_holds_the_constraints(tmp_path):
    study = make(
        tmp_path,
        **{
            "search.objective": ["price/r2", "parameters"],
            "search.constraints": ["sold/accuracy >= 0.1", "latency_ms <= 1000", "parameters <= 300"],
            "search.spaces": [],
            "search.space": {"model.encoder.width": {"choice": [2, 8, 12, 100]}},
            "search.sampler": "random",
            "search.trials": 8,
            "search.concurrency": 1,  # a process less to start
            "search.confirm": {"top": 1, "seeds": 2},
            "training.epochs": 3,
        },
    )
    seen = Seen()
    result = search(study, progress=seen)
    trials = result.trials.set_index("number")
    assert (trials["latency_ms"] > 0).all()
    assert (trials["feasible"] == (trials["parameters"] <= 300)).all()
    assert trials.groupby("model.encoder.width")["parameters"].nunique().eq(1).all()
    assert not trials.loc[trials["model.encoder.width"] == 100, "feasible"].any()
    kept = trials[trials["feasible"]]
    for number, trial in kept.iterrows():
        beaten = ((kept["price/r2"] >= trial["price/r2"]) & (kept["parameters"] <= trial["parameters"])) & (
            (kept["price/r2"] > trial["price/r2"]) | (kept["parameters"] < trial["parameters"])
        )
        assert trial["front"] == (not beaten.any()), number
    assert result.front["number"].iloc[0] == result.trials["number"].iloc[0]
    assert result.chosen == "the best on validation by means over 2 new seeds"
    assert result.best_values["model.encoder.width"] < 100
    assert {"price/r2", "parameters", "improvement", "price/rmse"} <= set(seen.bests[-1])

    runs = child_runs(study).set_index("run")
    for number, trial in trials.iterrows():
        run = runs.loc[f"trial {number:04d}"]
        assert run["objective/parameters"] == run["cost/parameters"] == trial["parameters"]
        assert run["objective/price/r2"] == pytest.approx(trial["price/r2"])
    assert (result.folder / "plots" / "pareto_front.png").exists()

    # What was chosen was trained again with new seeds, beside the study's own values.
    confirmation = result.confirmation.set_index(["candidate", "objective"])
    chosen, again = str(result.best_trial), runs[runs["kind"] == "confirmation"]
    assert set(confirmation.index.get_level_values("candidate")) == {chosen, "default"}
    assert sorted(again.index) == sorted(
        f"{name} seed {seed}" for name in ("default", f"trial {result.best_trial:}") for seed in (1, 2)
    )
    seeds = [f"trial {chosen} seed {seed}" for seed in (1, 2)]
    assert runs.loc[seeds, "objective/price/r2"].nunique() == 2
    validation = confirmation.loc[(chosen, "price/r2"), "validation"]
    assert validation == pytest.approx(runs.loc[seeds, "objective/price/r2"].mean())
    widths = confirmation["test"].xs("parameters", level="objective")
    assert confirmation.loc[(chosen, "parameters"), "difference"] == widths["default"] - widths[chosen]
    assert len(result.confirmed) == 2
    assert not (result.folder / "confirmation" / "trials").exists()
    pd.testing.assert_frame_equal(search(study).trials, result.trials)


# --- what searches survive -------------------------------------------------------------------------------------------


def test_trials_that_raise_diverge_or_die_are_recorded_and_the_others_finish_in_few_processes(tmp_path):
    log = tmp_path / "built"
    study = make(
        tmp_path,
        **{
            "model.encoder.kind": "trial_parts:Encoder",
            "model.encoder.options": {"log": str(log)},
            "search.spaces": ["trial_parts:fates"],
            "search.trials": 8,
            "search.scheduler": "none",
            "search.concurrency": 1,
            "scale.max_failures": 1,
        },
    )
    result = search(study)
    trials = result.trials.set_index("number").sort_index()
    assert trials["state"].tolist() == [
        "finished", "failed", "finished", "failed", "finished", "failed", "finished", "finished",
    ]  # fmt: skip
    assert trials.loc[1, "error"] == "ValueError: a fault in the encoder"
    assert "not a number" in trials.loc[3, "error"]
    assert "process died" in trials.loc[5, "error"]
    runs = child_runs(study).set_index("run")
    assert (runs.loc[["trial 0001", "trial 0003", "trial 0005"], "status"] == "FAILED").all()

    built = [line.split() for line in log.read_text().splitlines()]
    in_workers = [(pid, fate) for pid, fate in built if int(pid) != os.getpid()]
    assert [fate for _, fate in in_workers].count("die") == 2  # once more, as scale.max_failures says
    # One process, and two more for those that were killed; what was raised cost none.
    assert len({pid for pid, _ in in_workers}) == 3


def test_a_search_all_of_whose_trials_fail_says_why(tmp_path):
    study = make(
        tmp_path,
        **{
            "search.spaces": [],
            "search.space": {"training.optimiser.learning_rate": {"low": 1e25, "high": 1e30, "log": True}},
            "search.objective": "price/rmse",
            "search.trials": 2,
            "search.concurrency": 1,
            "training.optimiser": {"kind": "sgd"},
        },
    )
    with pytest.raises(RunError, match=r"all 2 trials .* not a number"):
        search(study)


def test_a_time_limit_ends_trials_where_they_are(tmp_path):
    study = make(
        tmp_path,
        search__trials=None, search__minutes=0.3, search__scheduler="none", search__concurrency=1,
        training__epochs=200, training__early_stopping=None,
        model__encoder__kind="trial_parts:Encoder", model__encoder__options={"driver": os.getpid()},
    )  # fmt: skip
    # Epochs of trials are slow, so that the first one cannot end in time; those of baselines are not.
    train_baselines(study, prepare(study), study.storage_folder / "baselines")
    result = search(study)
    (trial,) = result.trials.to_dict("records")
    assert (trial["state"], trial["stopped"]) == ("stopped", "minutes")
    assert 0 < trial["epochs"] < 200
    assert search(study).folder == result.folder  # the time is used: the same command returns what was found


def test_a_time_limit_that_leaves_no_time_for_trials_is_told(tmp_path):
    with pytest.raises(RunError, match="search.minutes: the 1e-05 minutes were over before a trial began"):
        search(make(tmp_path, search__trials=None, search__minutes=1e-5))


def test_more_workers_than_cpus_are_refused_before_anything_is_made(tmp_path):
    study = make(tmp_path, scale__workers=500)
    with pytest.raises(ResourceError, match="scale.workers 500"):
        search(study)
    assert not study.storage_folder.exists()


@pytest.mark.slow
@pytest.mark.cluster
def test_trials_of_several_workers_are_stopped_early_and_give_everything_back(tmp_path):
    import ray

    processors = ray.cluster_resources()["CPU"]
    study = make(
        tmp_path,
        **{
            "search.spaces": [],
            "search.space": {"training.optimiser.learning_rate": {"choice": [0.02, 1e-9]}},
            "seed": 4,  # draws the good learning rate first, then the one that cannot learn
            "search.trials": 2,
            "search.sampler": "random",
            "search.grace_epochs": 2,
            "search.concurrency": 2,  # more than there is room for
            "training.epochs": 8,
            "training.early_stopping": None,
            "scale.workers": 2,
        },
    )
    result = search(study)
    trials = result.trials.set_index("number")
    assert (trials["error"].isna()).all()
    assert list(trials.sort_index()["state"]) == ["finished", "stopped"]
    assert result.best_values["training.optimiser.learning_rate"] == 0.02
    validation = result.metrics[result.metrics["split"] == "validation"].set_index("task")
    assert validation.loc["price", "multi_task"] == pytest.approx(result.trials["price/rmse"].iloc[0], rel=1e-6)
    deadline = time.monotonic() + 60
    while (left := left_behind(tmp_path, processors)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


RAY_S_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")


def left_behind(folder: Path, processors: float) -> list[str]:
    """What is still reserved, runs, or is held open of a search in `folder`."""
    import ray
    from ray.util import placement_group_table

    left = [f"placement group {key}" for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
    if (free := ray.available_resources().get("CPU", 0)) != processors:
        left.append(f"{processors - free} of {processors} processors")
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if "tracking.launcher" in command:  # lives as long as this process, and its log is in the first search
                continue
            if command.startswith("ray::") and not command.startswith(RAY_S_OWN):
                left.append(f"process {command}")
            files = [Path(file.path) for file in process.open_files()]
            left += [f"{file} of {command}" for file in files if file.is_relative_to(folder)]
    return left


# --- going on --------------------------------------------------------------------------------------------------------

SCRIPT = """import sys
from polyshot.progress import Progress
from polyshot.verbs.search import search
from polyshot.study import Study

class Lines(Progress):
    def advance(self, activity, completed, words=""):
        if activity == "search":
            print(completed, flush=True)

if __name__ == "__main__":
    search(Study.load(sys.argv[1]), progress=Lines())
"""


def killed(folder: Path, when: Callable[[int], bool]) -> int:
    """Runs the search of `folder` in a process of its own, which is killed; returns its exit code."""
    (folder / "script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder / "study.yaml")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit() and when(int(line)):
                process.kill()
                break
        return process.wait(60)


class Impatient(Progress):
    """Presses Ctrl-C when so many trials have ended."""

    def __init__(self, trials: int):
        self._trials = trials

    def advance(self, activity: str, completed: int, words: str = "") -> None:  # noqa: ARG002
        if activity == "search" and completed == self._trials:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_search_that_is_killed_and_then_interrupted_goes_on_and_repeats_no_trial(tmp_path, monkeypatch):
    monkeypatch.setattr("polyshot.searching.record._KEPT_CHECKPOINTS", 7)  # to look into those that went on
    study = make(
        tmp_path,
        search__trials=7, search__scheduler="none", search__sampler="random", search__concurrency=2,
        training__epochs=60, training__early_stopping=None, training__checkpoint_seconds=0.0,
    )  # fmt: skip
    # The process that is killed packs two trials at a time; those that go on have them under Ray.
    (tmp_path / "study.yaml").write_text(study.with_values({"search.pack": 2}).to_yaml())
    folder = study.storage_folder / "search-1"
    direction = "maximize"

    def ended() -> dict[int, tuple]:
        trials = open_study(study, folder / "optuna.journal", direction).trials
        return {t.number: (t.state, t.params, t.value, t.datetime_complete) for t in trials if t.state.is_finished()}

    def trained(number: int) -> list[dict]:
        """The epochs in the trial's checkpoint; their seconds tell an epoch from the same one trained again."""
        state = load_checkpoint(folder / "trials" / f"trial-{number:04d}" / "checkpoint.pt")
        return state["history"] if state else []

    left: dict[int, list[dict]] = {}  # of trials that were under way when the process died

    def one_is_under_way(done: int) -> bool:
        deadline = time.monotonic() + 60
        while done >= 2 and not left and time.monotonic() < deadline:
            left.update({number: epochs for number in range(7) if 0 < len(epochs := trained(number)) < 60})
        return done >= 2

    assert killed(tmp_path, one_is_under_way) == -signal.SIGKILL
    after_kill = ended()
    assert left
    assert 2 <= len(after_kill) < 7
    assert json.loads((folder / "run.json").read_text())["status"] == "running"

    with pytest.raises(KeyboardInterrupt):
        search(study, progress=Impatient(4))
    after_interrupt = ended()
    assert 4 <= len(after_interrupt) < 7
    assert child_runs(study).set_index("run").loc["search-1", "status"] == "KILLED"
    assert json.loads((folder / "run.json").read_text())["status"] == "running"

    result = search(study)
    finished = ended()
    assert result.folder == folder
    assert list(finished) == list(range(7))
    assert {number: finished[number] for number in after_kill} == after_kill
    assert {number: finished[number] for number in after_interrupt} == after_interrupt
    assert all(state == TrialState.COMPLETE for state, *_ in finished.values())
    assert len({tuple(params.values()) for _, params, *_ in finished.values()}) == 7
    # What was under way when the process died went on from its checkpoint: no epoch was trained or logged twice.
    assert {number: trained(number)[: len(epochs)] for number, epochs in left.items()} == left
    for steps in curves(study).values():
        assert len(steps) == len(set(steps))
        assert steps[-1] == 60


# --- trials that copy each other, or get more labels -----------------------------------------------------------------


def test_a_population_s_model_is_that_of_its_schedule_and_every_record_says_so(tmp_path):
    from polyshot.training.changing import train_changing
    from polyshot.training.loop import TrainingRun
    from polyshot.verbs.compare import compare

    rate = "training.optimiser.learning_rate"
    study = make(
        tmp_path, search__scheduler="pbt", search__trials=4, search__grace_epochs=2, training__epochs=8,
        search__spaces=["task_weights"], search__space={rate: {"low": 1e-4, "high": 1e-1, "log": True}},
    )  # fmt: skip
    result = search(study)
    trials = result.trials.set_index("number")
    assert (trials["state"] == "finished").all() and (trials["epochs"] == 8).all()
    copied = trials["copied"].dropna()
    assert len(copied) >= 1 and copied.str.fullmatch(r"trial \d after epoch [246](, trial \d after epoch [246])*").all()

    schedules = pd.read_csv(result.folder / "schedules.csv")
    own = schedules[schedules["number"] == copied.index[0]]
    assert own["from_epoch"].iloc[0] == 1 and len(own) > 1
    assert own["trained_by"].iloc[-1] == copied.index[0] != own["trained_by"].iloc[-2]
    assert own["tasks.price.weight"].iloc[-1] == pytest.approx(trials.loc[copied.index[0], "tasks.price.weight"])
    values = own.drop(columns=["number", "trained_by"]).set_index("from_epoch")
    studies = {epoch: study.with_values(row) for epoch, row in values.to_dict(orient="index").items()}
    alone = train_changing(studies, lambda changed: TrainingRun(changed, prepare(changed)))
    assert trials.loc[copied.index[0], "price/rmse"] == pytest.approx(alone.best.metrics["val/price/rmse"], rel=1e-6)

    runs = child_runs(study).set_index("run")
    for number, row in trials.iterrows():
        run = runs.loc[f"trial {number:04d}"]
        assert run[f"value/{rate}"] == pytest.approx(row[rate])
        assert run["val/price/rmse"] == pytest.approx(row["price/rmse"])
    assert rate not in runs or runs.loc[runs["kind"] == "trial", rate].isna().all()
    assert f"value/{rate}" in compare(study)
    assert curves(study) == {number: list(range(1, 9)) for number in range(4)}
    assert not (result.folder / "importances.csv").exists()
    assert "How its model came about" in (result.folder / "report.html").read_text()
    assert not list(result.folder.glob("polyshot-tune-*"))


def test_with_labels_as_fidelity_trials_that_may_go_on_are_trained_on_all_of_them(tmp_path):
    from polyshot.training.loop import TrainingRun

    study = make(
        tmp_path, search__fidelity="labels", search__trials=8, search__sampler="random", search__concurrency=1,
        search__space={"training.optimiser.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}, search__spaces=[],
    )  # fmt: skip
    result = search(study)
    data = prepare(study)
    labelled = int(data.train.mask.any(1).sum())
    finished, stopped = (result.trials[result.trials["state"] == state] for state in ("finished", "stopped"))
    assert (finished["labels"] == len(data.train)).all() and (finished["epochs"] == 3 * 4).all()
    assert len(stopped) and set(stopped["labels"]) <= {round(labelled / 16), round(labelled / 4)}
    run = TrainingRun(result.best_study, data)
    *_, _last = run.epochs()
    assert result.trials["price/rmse"].iloc[0] == pytest.approx(run.best.metrics["val/price/rmse"], rel=1e-6)
    assert max(len(steps) for steps in curves(study).values()) == 12
