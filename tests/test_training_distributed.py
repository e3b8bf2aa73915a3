"""The loop under Ray Train: what its users see when workers, the driver or the disk fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
import ray.train
import torch
from helpers_media import requests, tiny_transformer
from helpers_training import make_prepared, make_study, trained

from polyshot.data.prepare import prepare
from polyshot.errors import ResourceError, RunError
from polyshot.training.checkpoint import save_checkpoint
from polyshot.training.distributed import Meeting, lead, outcome, train_distributed
from polyshot.training.loop import TrainingDivergedError, TrainingRun

EPOCHS = 150
VALUES = {
    "scale.workers": 2,
    "training.epochs": EPOCHS,
    "training.checkpoint_seconds": 0.1,
    "training.optimiser.learning_rate": 1e-3,
    "model.encoder.activation": "tanh",
}

# A group of workers takes ten seconds to start, on a busy machine a minute.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray with two CPUs, and as few processes as Ray Train can do with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        yield ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)["address"]
        ray.shutdown()


def _descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children] + [pid for child in children for pid in _descendants(int(child))]


def _workers() -> list[int]:
    """The training workers of this process's Ray."""
    return [
        process
        for process in _descendants(os.getpid())
        if "RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_text()
    ]


DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import ray
from helpers_training import make_prepared, make_study
from test_training_distributed import VALUES
from polyshot.training.distributed import train_distributed

def on_epoch(epoch):
    print(epoch.number, flush=True)
    if epoch.number == 20:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    study = make_study(VALUES)
    train_distributed(study, make_prepared(study), Path(sys.argv[2]), on_epoch=on_epoch)
"""


@dataclass
class Story:
    """A run whose driver was killed, that was taken up again, lost a worker, and ended."""

    first: list[int] = field(default_factory=list)  # epochs told before the driver died
    second: list[int] = field(default_factory=list)  # and after the run was taken up again
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    killed: int = 0
    begun: list[int] = field(default_factory=list)  # the first epoch of each life of the workers
    state: dict = field(default_factory=dict)


@pytest.fixture(scope="module")
def story(cluster, tmp_path_factory) -> Story:
    story, study = Story(), make_study(VALUES)
    prepared, folder = make_prepared(study), tmp_path_factory.mktemp("run")

    def on_epoch(epoch):
        story.second.append(epoch.number)
        story.metrics[epoch.number] = epoch.metrics
        if epoch.number >= 60 and not story.killed:
            story.killed = _workers()[-1]
            os.kill(story.killed, signal.SIGKILL)

    command = [sys.executable, "-c", DRIVER, cluster, str(folder), str(Path(__file__).parent)]
    driver = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    assert driver.returncode == -signal.SIGKILL
    story.first = [int(number) for number in driver.stdout.split()]
    story.state = train_distributed(study, prepared, folder, on_epoch=on_epoch)
    lives = (folder / "epochs.jsonl").read_text().split("\n\n")
    story.begun = [int(life.strip().split("\n")[0].split(":")[1].split(",")[0]) for life in lives if life.strip()]
    return story


@pytest.fixture(scope="module")
def undisturbed() -> TrainingRun:
    """The same run in this process, by one worker, from start to end."""
    study = make_study(VALUES)
    run = TrainingRun(study, make_prepared(study))
    list(run.epochs())
    return run


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was_and_every_epoch_is_told_once(story):
    assert story.first == list(range(1, 21))
    assert story.second == list(range(20, EPOCHS + 1))  # it died before it could note that 20 was told


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_goes_on_from_the_last_checkpoint(story):
    assert story.killed
    assert len(story.begun) == 3
    assert story.begun[0] == 1 < story.begun[1] < story.begun[2]


@pytest.mark.slow
def test_the_metrics_are_those_of_an_undisturbed_run(story, undisturbed):
    for epoch in undisturbed.history[19:]:
        assert story.metrics[epoch.number] == pytest.approx(epoch.metrics, rel=1e-3)


@pytest.mark.slow
def test_the_state_that_comes_back_is_the_runs(story, undisturbed):
    study = make_study(VALUES)
    prepared = make_prepared(study)
    run = TrainingRun(study, prepared)
    run.load_state_dict(story.state)
    assert run.finished
    assert run.evaluate(prepared.test) == pytest.approx(undisturbed.evaluate(prepared.test), rel=1e-3)


@pytest.mark.slow
def test_no_worker_is_left_behind(story):
    assert story.state
    deadline = time.monotonic() + 60
    while _workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _workers()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_transformer_divided_over_two_workers_learns_what_one_process_learns(tmp_path):
    pytest.importorskip("transformers")
    encoder = tiny_transformer(tmp_path / "encoder")
    settings = json.loads((encoder / "config.json").read_text())
    without_dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)  # each draws its own
    (encoder / "config.json").write_text(json.dumps(settings | without_dropout))
    values = {
        "data.columns": {"words": "text"},
        "data.ignore": ["slots"],
        "model.encoder": {"kind": "transformer", "model": str(encoder), "max_tokens": 12},
        "training.epochs": 2,
    }
    study = make_study(values, {"intent": {"kind": "binary"}, "length": {"kind": "regression"}})
    prepared = prepare(study, requests(60))
    alone = trained(study, prepared)
    divided = study.with_values({"scale.workers": 2, "scale.shard": True, "model.encoder.checkpoint_activations": True})
    told = []
    state = train_distributed(divided, prepared, tmp_path / "run", on_epoch=told.append)
    for epoch, expected in zip(told, alone.history, strict=True):
        assert epoch.metrics == pytest.approx(expected.metrics, rel=1e-3)
    for name, value in alone.state_dict()["model"].items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scale.workers": 3}, "3 workers of 1 CPU each were asked for and there is room for 2; lower scale.workers"),
        ({"scale.workers": 2, "scale.threads": 2}, "room for 1; lower scale.workers or scale.threads"),
        ({"scale.workers": 1, "scale.device": "cuda"}, "1 workers of 1 CPU and 1 GPU each"),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_more_workers_than_there_is_room_for_are_refused_before_anything_starts(tmp_path, values, words):
    if torch.cuda.is_available() and "scale.device" in values:
        pytest.skip("has a GPU")
    study = make_study(values)
    with pytest.raises(ResourceError) as caught:
        train_distributed(study, make_prepared(study), tmp_path / "run", on_epoch=print)
    assert str(caught.value).startswith("scale.workers: ")
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_be_built_is_said_before_anything_starts(tmp_path):
    study = make_study({"scale.workers": 2, "model.encoder.kind": "no_such_module:Encoder"})
    with pytest.raises(RunError) as caught:
        train_distributed(study, make_prepared(study), tmp_path / "run", on_epoch=print)
    assert "no_such_module" in str(caught.value)
    assert not (tmp_path / "run").exists()


# --- without a cluster -----------------------------------------------------------------------------------------------


def test_a_disk_that_takes_no_checkpoint_ends_the_run_with_that_fault(tmp_path):
    study = make_study({"training.checkpoint_seconds": 0.0})
    (tmp_path / "checkpoint.pt.previous").mkdir()
    save_checkpoint({}, tmp_path / "checkpoint.pt")  # the next one would have to go where the folder is
    run = TrainingRun(study, make_prepared(study))
    fault = lead(run, run.epochs(), Meeting(tmp_path))
    assert isinstance(fault, RunError)
    assert "checkpoint.pt: the checkpoint cannot be written" in str(fault)
    assert len((tmp_path / "epochs.jsonl").read_text().split()) > 0


def _ended(error: Exception) -> Future:
    fit: Future = Future()
    fit.set_exception(error)
    return fit


def test_a_fault_of_a_worker_comes_out_as_it_is():
    fault = TrainingDivergedError("training diverged")
    error = ray.train.WorkerGroupError("", {0: RuntimeError("connection closed"), 1: fault})
    assert outcome(_ended(error), make_study()) is fault


def test_workers_that_die_too_often_are_said():
    death = ray.exceptions.ActorDiedError()
    error = ray.train.WorkerGroupError("", {0: RuntimeError("connection closed"), 1: death})
    fault = outcome(_ended(error), make_study({"scale.max_failures": 1}))
    assert isinstance(fault, RunError)
    assert "died for the 2. time" in str(fault)
    assert "scale.max_failures" in str(fault)


def test_a_fault_of_ours_keeps_its_traceback():
    error = ray.train.WorkerGroupError("", {0: ValueError("a bug")})
    with pytest.raises(ray.train.WorkerGroupError):
        outcome(_ended(error), make_study())
