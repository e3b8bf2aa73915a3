"""Meta-training under Ray Train: the death of a worker and the number of them change nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_distributed import _workers
from torch import multiprocessing

from polyshot.cluster.ray import ray_session
from polyshot.errors import StudyError
from polyshot.meta.episodes import build_source
from polyshot.meta.training import MetaRun
from polyshot.progress import Progress
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint
from polyshot.training.distributed import Meeting, follow, lead
from polyshot.training.loop import Epoch
from polyshot.training.world import World
from polyshot.verbs.meta import ACTIVITY, begin, meta_learn

# A group of workers takes ten seconds to start, on a busy machine a minute.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


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


# --- the workers' part of it, without Ray ----------------------------------------------------------------------------


def _worker(rank: int, folder: str) -> None:
    """Two lives: the first is asked to stop between two looks, the second goes on to the end."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting-place", rank=rank, world_size=2)
    study, meeting = waves(Path(folder)), Meeting(Path(folder))
    for life in range(2):
        run = begin(study, build_source(study), torch.device("cpu"), World(rank, 2))
        if (state := load_checkpoint(meeting.checkpoint)) is not None:
            run.load_state_dict(state)
        parts = MetaRun.iterations(run)
        if rank == 0:
            assert lead(run, _stopping_at(250, parts, meeting) if life == 0 else parts, meeting) is None
            meeting.stop.unlink(missing_ok=True)
        else:
            follow(run, parts)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _stopping_at(iteration: int, parts: Iterator[Epoch | None], meeting: Meeting) -> Iterator[Epoch | None]:
    for number, part in enumerate(parts, 1):
        if number == iteration:
            meeting.stop.touch()
        yield part


def _lives(folder: Path) -> list[list[int]]:
    """The epochs that each life of the workers wrote down."""
    lives = (folder / "epochs.jsonl").read_text().split("\n\n")
    return [[json.loads(line)["number"] for line in life.strip().split("\n")] for life in lives]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file")
def test_workers_that_were_stopped_go_on_to_the_run_of_one_process(tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    first, second = _lives(tmp_path)
    assert first in ([1, 2], [1, 2, 3])  # asked at 250 of 1,000 iterations, with a look after every hundred
    assert [*first, *second] == list(range(1, 11))
    study = waves(tmp_path)
    alone, ended = (MetaRun(study, build_source(study)) for _ in range(2))
    list(alone.epochs())
    ended.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert ended.finished
    for mine, theirs in zip(ended.history, alone.history, strict=True):
        assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-3)


# --- under Ray Train -------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path):
    """Ray, and as few processes as Ray Train can do with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        with ray_session(waves(tmp_path)):
            yield


class Killing(Progress):
    """Kills a worker after the third look at the validation tasks, and remembers which looks were told."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.killed = 0

    def advance(self, activity: str, completed: int, words: str = "") -> None:  # noqa: ARG002
        if activity != ACTIVITY:
            return
        self.told.append(completed)
        if completed >= 300 and not self.killed:
            self.killed = _workers()[-1]
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced_and_the_run_is_that_of_one_undisturbed_process(tmp_path: Path) -> None:
    study = waves(tmp_path)
    undisturbed = MetaRun(study, build_source(study))
    list(undisturbed.epochs())
    progress = Killing()
    result = meta_learn(study, baselines=False, progress=progress)
    assert progress.killed and len(_lives(result.folder)) > 1
    assert progress.told == list(range(100, 1001, 100))
    losses = [epoch.metrics["val/loss"] for epoch in undisturbed.history]
    assert list(result.curves["val/loss"]) == pytest.approx(losses, rel=1e-2)
    assert set(result.learner.weights) == set(undisturbed.weights())


def test_fewer_workers_at_most_than_at_least_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="min_workers"):
        waves(tmp_path, **{"scale.min_workers": 3})
