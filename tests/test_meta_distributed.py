"""Meta-training under Ray Train: the death of a worker and the number of them change nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_training_distributed import _workers

from polyshot.cluster.ray import ray_session
from polyshot.errors import StudyError
from polyshot.meta.episodes import build_source
from polyshot.meta.training import MetaRun
from polyshot.study import Study
from polyshot.verbs.meta import meta_learn, train_distributed

pytestmark = pytest.mark.timeout(900)  # a group of workers takes ten seconds to start, on a busy machine a minute


def waves(folder: Path, **values: Any) -> Study:
    return Study.from_dict(
        {
            "name": "waves",
            "storage": str(folder / "runs"),
            "model": {"encoder": {"width": 16}},
            "meta": {
                "episodes": {"kind": "sinusoids", "test_query": 20},
                "learner": {"kind": "maml", "rate": 0.02, "steps": 1},
                "tasks_per_batch": 5,
                "iterations": 1000,
                "validate_every": 100,
                "validation_tasks": 50,
                "test_tasks": 50,
                "test_steps": 2,
                "compile": "never",
                "clip_norm": 1.0,
            },
            "training": {"checkpoint_seconds": 0.05},
            "scale": {"device": "cpu", "workers": 2, "min_workers": 1},
        }
    ).with_values(values)


@pytest.fixture
def cluster(tmp_path: Path):
    """Ray, and as few processes as Ray Train can do with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        with ray_session(waves(tmp_path)):
            yield


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced_and_the_run_is_that_of_one_undisturbed_process(tmp_path: Path) -> None:
    study = waves(tmp_path)
    source = build_source(study)
    killed, told = [], []

    def on_epoch(epoch) -> None:
        told.append(epoch.number)
        if epoch.number == 3:
            killed.append(_workers()[-1])
            os.kill(killed[0], signal.SIGKILL)

    state = train_distributed(study, source, tmp_path / "run", on_epoch)
    undisturbed, ended = MetaRun(study, source), MetaRun(study, source)
    list(undisturbed.epochs())
    ended.load_state_dict(state)
    lives = (tmp_path / "run" / "epochs.jsonl").read_text().count("\n\n")
    assert killed and lives >= 1
    assert told == list(range(1, 11)) and ended.finished
    for mine, theirs in zip(ended.history, undisturbed.history, strict=True):
        assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-2)
    # The verb judges, saves and records what the workers made like any other run.
    short = study.with_values({"meta.iterations": 200})
    alone = MetaRun(short, source)
    list(alone.epochs())
    result = meta_learn(short, baselines=False)
    assert list(result.curves["val/loss"]) == pytest.approx([e.metrics["val/loss"] for e in alone.history], rel=1e-2)
    assert set(result.learner.weights) == set(alone.weights())


def test_fewer_workers_at_most_than_at_least_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="min_workers"):
        waves(tmp_path, **{"scale.min_workers": 3})
