"""`polyshot meta --search` under a real Ray: trials of meta-learning, and what becomes of the best one."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from polyshot.cluster.ray import ray_session
from polyshot.errors import PolyshotError
from polyshot.meta.episodes import build_source
from polyshot.meta.training import MetaRun
from polyshot.searching.space import build_space
from polyshot.searching.trainable import SearchContext, TrialTrainable
from polyshot.study import Study
from polyshot.tracking.query import runs_table
from polyshot.verbs.adapt import find_learner
from polyshot.verbs.compare import compare
from polyshot.verbs.meta_search import MetaLearning, MetaSearchResult, meta_search


def waves(folder: Path, **values: Any) -> Study:
    """Sinusoids, learnt in four looks of fifty iterations."""
    return Study.from_dict(
        {
            "name": "waves",
            "storage": str(folder / "runs"),
            "model": {"encoder": {"width": 16, "depth": 2}},
            "meta": {
                "episodes": {"kind": "sinusoids", "test_query": 20},
                "learner": {"kind": "anil", "rate": 0.05, "steps": 1},
                "iterations": 200,
                "validate_every": 50,
                "tasks_per_batch": 8,
                "validation_tasks": 50,
                "test_tasks": 50,
                "test_steps": 3,
                "compile": "never",
            },
            "search": {
                "spaces": [],
                "space": {
                    "meta.learning_rate": {"low": 1e-5, "high": 3e-2, "log": True},
                    "meta.learner.rate": {"low": 1e-3, "high": 0.1, "log": True},
                },
                "trials": 4,
                "grace_epochs": 1,
                "concurrency": 1,
                "sampler": "random",
            },
            "scale": {"device": "cpu"},
        }
    ).with_values(values)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, MetaSearchResult]]:
    """A search, inside the one Ray of this module."""
    study = waves(tmp_path_factory.mktemp("waves"))
    with ray_session(study):
        yield study, meta_search(study, baselines=False)


def test_trials_are_stopped_after_looks_and_the_best_comes_first(searched) -> None:
    study, result = searched
    trials = result.trials
    assert sorted(trials["number"]) == [0, 1, 2, 3]
    finished, stopped = (trials[trials["state"] == state] for state in ("finished", "stopped"))
    # Rungs of four looks with a grace of one: after the first, and at the end.
    assert (finished["epochs"] == 4).all() and (stopped["epochs"] == 1).all()
    assert len(stopped) and len(finished) and len(finished) + len(stopped) == 4
    assert finished["sinusoid/mse"].is_monotonic_increasing  # an error: the least is best
    assert trials["state"].iloc[0] == "finished"
    assert result.best_values["meta.learning_rate"] == trials["meta.learning_rate"].iloc[0]
    assert result.best_study == study.with_values(result.best_values)


def test_a_trial_is_a_meta_training_with_its_values(searched) -> None:
    _, result = searched
    run = MetaRun(result.best_study, build_source(result.best_study))
    *_, last = run.epochs()
    assert run.best is not None
    value = run.best.metrics["val/sinusoid/mse"]
    assert result.trials["sinusoid/mse"].iloc[0] == pytest.approx(value, rel=1e-4)
    assert list(result.best.curves["val/loss"]) == pytest.approx(
        [epoch.metrics["val/loss"] for epoch in run.history], rel=1e-4
    )
    assert last.number == 4


def test_mlflow_has_a_run_of_kind_meta_and_its_trials_below_it(searched) -> None:
    study, result = searched
    runs = runs_table(study)
    parent = runs.loc[result.best.mlflow_id]
    assert (parent["kind"], parent["parent"], parent["status"]) == ("meta", "", "FINISHED")
    own = result.best.table.set_index("step")
    assert parent["test/sinusoid/mse"] == pytest.approx(own.loc[1, "mean"])
    children = runs[runs["parent"] == parent["run"]].sort_values("run")
    assert list(children["kind"]) == ["trial"] * 4
    trials = result.trials.sort_values("number")
    assert list(children["val/sinusoid/mse"]) == pytest.approx(list(trials["sinusoid/mse"]))
    assert list(children["meta.learning_rate"]) == pytest.approx(list(trials["meta.learning_rate"]))
    shown = compare(study, kind="trial")  # without what is nobody's
    assert shown["val/sinusoid/mse"].notna().all() and "val/improvement" not in shown
    assert list(children["status"]) == ["KILLED" if state == "stopped" else "FINISHED" for state in trials["state"]]


def test_the_best_learner_is_saved_judged_and_adapts(searched) -> None:
    study, result = searched
    assert list(result.best.table["step"]) == [0, 1, 2, 3]
    assert find_learner("waves", study.storage_folder.parent) == result.best.folder / "learner"
    learner = result.best.learner
    random = np.random.default_rng(0)
    points, line = random.uniform(-5, 5, (10, 1)), np.linspace(-5, 5, 50)[:, None]
    errors = [
        np.mean(
            (learner.adapt(points, 4 * np.sin(points[:, 0]), steps=steps).predict(line) - 4 * np.sin(line[:, 0])) ** 2
        )
        for steps in (0, 10)
    ]
    assert errors[1] < errors[0]


def test_the_same_command_returns_what_was_found_at_once(searched, polyshot, tmp_path: Path) -> None:
    study, result = searched
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    before = time.monotonic()
    done = polyshot("meta", "study.yaml", "--search", "--no-baselines", "--json")
    assert time.monotonic() - before < 10
    assert done.code == 0, done.err
    assert done.json()["best_values"] == result.best_values
    assert done.json()["folder"] == str(result.best.folder)
    pd.testing.assert_frame_equal(meta_search(study, baselines=False).trials, result.trials)


def test_a_larger_budget_goes_on_and_baselines_are_judged_when_they_are_asked_for(searched) -> None:
    study, result = searched
    again = meta_search(study.with_values({"search.trials": 5}))
    assert again.best.folder == result.best.folder
    assert sorted(again.trials["number"]) == [0, 1, 2, 3, 4]
    kept = again.trials[again.trials["number"] < 4].sort_values("number")["sinusoid/mse"]
    assert list(kept) == list(result.trials.sort_values("number")["sinusoid/mse"])
    assert len(result.best.verdicts) == 0 and len(again.best.verdicts) > 2


def test_a_trial_whose_process_died_goes_on_from_its_last_look(tmp_path: Path) -> None:
    study = waves(tmp_path, **{"training.checkpoint_seconds": 1e-6})
    subject = pickle.loads(pickle.dumps(MetaLearning(build_source(study))))  # noqa: S301 - as Ray sends it
    context = SearchContext(study, subject, tmp_path, frozenset({1, 4}), math.inf)
    trial = {"number": 0, "values": {"meta.learning_rate": 0.01}}

    class Worker(TrialTrainable):
        def setup(self, config: dict[str, Any]) -> None:
            super().setup(config, context)

    def steps(worker: Worker) -> list[dict[str, Any]]:
        """The result of the first step, and that of the last."""
        first = result = worker.step()
        while not result["done"]:
            result = worker.step()
        return [first, result]

    _, in_one_go = steps(Worker(trial | {"number": 1}))
    died = Worker(trial).step()
    taken_up, ended = steps(Worker(trial))
    assert died["epoch"] == 1
    assert taken_up["epochs"][0] == died["epochs"][0]  # down to its seconds: nothing is trained twice
    assert (ended["epoch"], ended["finished"]) == (4, True)
    assert ended["objective"] == in_one_go["objective"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"search.spaces": ["task_weights", "optimisation"]}, "plays no part in meta-learning"),
        ({"search.space": {"meta.validate_every": {"low": 10, "high": 50}}}, "must be the same in all trials"),
        ({"search.objective": "episodes/rmse"}, "optimises sinusoid/mse"),
        ({"scale.workers": 9}, "meta.tasks_per_batch"),
    ],
)
def test_what_a_search_of_meta_learning_cannot_do_is_told_before_it_starts(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    study = waves(tmp_path, **values)
    with pytest.raises(PolyshotError, match=words):
        meta_search(study)
    assert not study.storage_folder.exists()


# --- the space -------------------------------------------------------------------------------------------------------


def drawn(base: Study, count: int) -> list[Study]:
    draw = build_space(base)
    sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [base.with_values(draw(sampled.ask())) for _ in range(count)]


def kinds(studies: list[Study]) -> set[str]:
    return {study.meta.learner.kind for study in studies}


SPACE = {"search.spaces": ["meta"], "search.space": {}}
BY_STEPS = {"maml", "first_order_maml", "anil", "meta_sgd", "meta_curvature", "reptile"}


def test_every_learner_that_is_drawn_can_be_trained(tmp_path: Path) -> None:
    studies = drawn(waves(tmp_path, **SPACE, **{"meta.iterations": 1}), 40)
    source = build_source(studies[0])
    for study in studies:
        (epoch,) = MetaRun(study, source).epochs()
        assert math.isfinite(epoch.metrics["train/loss"])
    assert kinds(studies) == BY_STEPS | {"ridge"}


def test_learners_are_drawn_that_the_tasks_and_the_engine_have(tmp_path: Path) -> None:
    pictures = {"meta.episodes": {"kind": "classes", "source": "omniglot"}}
    assert kinds(drawn(waves(tmp_path, **SPACE, **pictures), 60)) == BY_STEPS | {"ridge", "protonet"}
    pictures = {"meta.episodes": {"kind": "classes", "source": "omniglot", "train_ways": 60}}
    of_any_ways = drawn(waves(tmp_path, **SPACE, **pictures), 40)
    assert kinds(of_any_ways) == {"ridge", "protonet", "maml", "first_order_maml", "anil"}
    assert all(getattr(study.meta.learner, "zero_head", True) for study in of_any_ways)
    assert kinds(drawn(waves(tmp_path, **SPACE, **pictures, **{"meta.engine": "learn2learn"}), 10)) == {"protonet"}
    studies = drawn(waves(tmp_path, **SPACE, **{"meta.engine": "learn2learn"}), 40)
    assert kinds(studies) == BY_STEPS
    assert not any(getattr(study.meta.learner, "per_step_rates", False) for study in studies)
