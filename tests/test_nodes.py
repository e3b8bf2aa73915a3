"""Several nodes: that verbs run over them, what is lost when one or all of them die, and what every node must see."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from conftest import STUDY, learnable_table
from helpers_store import Bucket, Steps, interrupt
from helpers_transfer import table, target_study, trained_source
from ray.cluster_utils import Cluster
from test_meta_distributed import waves
from test_transfer_search import SMALL

from polyshot import working_copy
from polyshot.cluster.ray import ray_session
from polyshot.errors import ResourceError
from polyshot.meta.episodes import build_source
from polyshot.meta.training import MetaRun
from polyshot.searching.searcher import open_study
from polyshot.searching.trainable import checkpoint_path
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint
from polyshot.verbs.meta import meta_learn
from polyshot.verbs.search import search
from polyshot.verbs.train import train
from polyshot.verbs.transfer_search import transfer_search

pytest_plugins = ("helpers_store",)
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ENCODER = """\
import time

import ray
import torch


class Encoder(torch.nn.Module):
    outputs = 4

    def __init__(self, inputs, log):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, 4)
        self.log = log
        context = ray.get_runtime_context() if ray.is_initialized() else None
        self.node = context.get_node_id() if context and context.get_actor_id() else None  # baselines are the driver's

    def forward(self, features):
        if self.training and self.node:
            time.sleep(0.05)
            with open(self.log, "a") as file:
                file.write(self.node + "\\n")
        return torch.relu(self.linear(features))
"""
DRIVER = """\
import sys
from polyshot.study import Study
from polyshot.verbs.search import search

if __name__ == "__main__":
    search(Study.load(sys.argv[1]))
"""
EPOCHS, BATCHES = 40, 2


def make(folder: Path, address: str, **values: Any) -> Study:
    """A search of two trials of some seconds each, one at a time, that write down which nodes they are on."""
    learnable_table(120).to_csv(folder / "houses.csv", index=False)
    (folder / "slow_parts.py").write_text(ENCODER)
    (folder / "study.yaml").write_text(STUDY)
    study = Study.load(folder / "study.yaml").with_values(
        {
            "storage": str(folder / "runs"),
            "model.encoder": {"kind": "slow_parts:Encoder", "options": {"log": str(folder / "nodes.log")}},
            "training.epochs": EPOCHS,
            "training.early_stopping": None,
            "training.checkpoint_seconds": 0.0,
            "search.spaces": [],
            "search.space": {"training.optimiser.learning_rate": {"low": 1e-3, "high": 1e-2}},
            "search.trials": 2,
            "search.concurrency": 1,
            "search.scheduler": "none",
            "search.objective": "price/rmse",
            "scale.address": address,
        }
        | {name.replace("__", "."): value for name, value in values.items()}
    )
    (folder / "study.yaml").write_text(study.to_yaml())
    (folder / "driver.py").write_text(DRIVER)
    return Study.load(folder / "study.yaml")


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def nodes_of_batches(folder: Path) -> list[str]:
    """Of each batch that a trial was trained on, its node."""
    log = folder / "nodes.log"
    return log.read_text().split() if log.exists() else []


def trials(study: Study) -> dict[int, tuple[str, object]]:
    """The state of each trial of the search, and when it ended."""
    found = open_study(study, study.storage_folder / "search-1" / "optuna.journal", "minimize").trials
    return {trial.number: (trial.state.name, trial.datetime_complete) for trial in found}


def start(folder: Path) -> subprocess.Popen[bytes]:
    # All but what this process's Ray has set for itself; the cluster's token, where it has one, is the driver's too.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name.startswith("RAY_AUTH_")
    }
    command = [sys.executable, str(folder / "driver.py"), str(folder / "study.yaml")]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=environment | {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
        )


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head without processors and two nodes with one each; they know an object store, each with a disk of its own."""
    if importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto"):
        request.getfixturevalue("server")
    with pytest.MonkeyPatch.context() as patch:
        # A busy machine is no dead node; one that is gone answers no question, which is asked twice a second.
        patch.setenv("RAY_health_check_failure_threshold", "20")
        patch.setenv("RAY_health_check_period_ms", "500")
        cluster = Cluster()
        disks = request.getfixturevalue("tmp_path_factory").mktemp("disks")
        for number, processors in enumerate((0, 1, 1)):
            add_node(cluster, processors, {working_copy.FOLDER: str(disks / str(number))})
        yield cluster
        cluster.shutdown()


def add_node(cluster: Cluster, processors: int, environment: dict[str, str]) -> None:
    for attempt in range(3):  # Ray gives a node half a minute to come up, which a busy machine may need more than once
        try:
            cluster.add_node(
                num_cpus=processors, object_store_memory=80_000_000, include_dashboard=False, env_vars=environment
            )
            return
        except Exception:
            if attempt == 2:
                raise


@pytest.mark.slow
def test_storage_that_a_node_does_not_see_is_refused_before_anything_is_trained(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = make(tmp_path, cluster.address)
    own = study.with_values({"storage": "/proc/self/cwd/runs"})  # the same words for another folder in every process
    with pytest.raises(ResourceError, match=r"^storage: .*/runs/houses is not the same folder"), ray_session(own):
        pytest.fail("it was not refused")
    with ray_session(study):
        assert list(study.storage_folder.iterdir()) == []  # nothing is left of the question
        # Workers of one training meet over the interface that joins the nodes, and not at what a host's name means.
        interface = ray.get(ray.remote(lambda: os.environ["GLOO_SOCKET_IFNAME"]).remote())
        assert ray.util.get_node_ip_address() in [own.address for own in psutil.net_if_addrs()[interface]]


@pytest.mark.slow
def test_meta_training_by_a_worker_on_each_node_is_that_of_one_process(cluster, tmp_path, monkeypatch):
    for part in ("ENABLE_PREEMPTION_WATCHER", "METRICS_ENABLED"):  # as few processes as Ray Train can do with
        monkeypatch.setenv(f"RAY_TRAIN_{part}", "0")
    # Each needs a processor, of which each node has one.
    values = {"scale.address": cluster.address, "scale.workers": 2, "scale.min_workers": 2, "meta.iterations": 300}
    study = waves(tmp_path, **values)
    alone = MetaRun(study, build_source(study))
    losses = [epoch.metrics["val/loss"] for epoch in alone.epochs()]
    result = meta_learn(study, baselines=False)
    assert list(result.curves["val/loss"]) == pytest.approx(losses, rel=1e-2)
    assert result.table["mean"].iloc[-1] < result.table["mean"].iloc[0]  # what was learnt came back


@pytest.mark.slow
def test_a_search_of_transfer_runs_to_its_end_over_two_nodes(cluster, tmp_path):
    trained_source(tmp_path, rows=300, **{"training.epochs": 2})
    study = target_study(tmp_path, rows=300, **SMALL, **{"scale.address": cluster.address}).with_values(
        {"search.concurrency": 2, "search.scheduler": "none"}
    )
    result = transfer_search(study)
    assert list(result.trials["state"]) == ["finished"] * 4
    assert len(result.best.model.predict(table(20, 3))) == 20


@pytest.mark.slow
def test_trials_on_nodes_with_disks_of_their_own_bring_their_models_to_the_driver(cluster, bucket: Bucket, tmp_path):
    study = make(
        tmp_path, cluster.address, storage=bucket.storage, training__epochs=6, search__trials=3, search__concurrency=2
    )
    result = search(study)
    assert nodes_of_batches(tmp_path)  # of one of the two or of both, and never of the driver's own
    assert list(result.trials["state"]) == ["finished"] * 3
    models = result.folder / "trials"
    assert bucket.names("houses/search-1/trials") == {f"trial-{number:04d}" for number in range(3)}
    for number in range(3):
        state = load_checkpoint(checkpoint_path(models, number))
        assert state is not None and len(state["history"]) == 6
    assert bucket.has("houses/search-1/model/weights.pt")


@pytest.mark.slow
def test_workers_on_nodes_with_disks_of_their_own_are_stopped_and_go_on_for_a_driver_anywhere(
    cluster, bucket: Bucket, tmp_path
):
    epochs = 120
    study = make(tmp_path, cluster.address, storage=bucket.storage, training__epochs=epochs, scale__workers=2)
    told = []
    with pytest.raises(KeyboardInterrupt):
        train(study, baselines=False, progress=(steps := Steps("multi-task model", 3, interrupt)))
    told += steps.seen
    assert bucket.has("houses/train-1/checkpoint.pt")

    bucket.on("two")
    state = load_checkpoint(study.storage_folder / "train-1" / "checkpoint.pt")
    assert state is not None and 3 <= len(state["history"]) < epochs
    result = train(study, baselines=False, progress=(steps := Steps("multi-task model")))
    assert result.folder == study.storage_folder / "train-1" and len(result.curves) == epochs
    told += steps.seen
    assert sorted(set(told)) == list(range(1, epochs + 1)) and len(told) <= epochs + 1
    assert len(set(nodes_of_batches(tmp_path))) == 2


@pytest.mark.slow
def test_a_node_that_dies_with_a_trial_costs_what_came_after_its_last_checkpoint(cluster, tmp_path):
    study = make(tmp_path, cluster.address)
    driver = start(tmp_path)
    try:
        until(lambda: len(nodes_of_batches(tmp_path)) >= 40 or driver.poll() is not None)
        [first] = set(nodes_of_batches(tmp_path))
        [node] = [node for node in cluster.list_all_nodes() if node.node_id == first]
        cluster.remove_node(node, allow_graceful=False)
        assert driver.wait(240) == 0, (tmp_path / "driver.log").read_text()
    finally:
        driver.kill()
    batches = nodes_of_batches(tmp_path)
    assert len(set(batches)) == 2
    assert set(batches[len(batches) // 2 :]) == set(batches) - {first}
    assert {number: state for number, (state, _) in trials(study).items()} == {0: "COMPLETE", 1: "COMPLETE"}
    assert 2 * EPOCHS * BATCHES <= len(batches) < 2 * EPOCHS * BATCHES + 30  # anew, it would be 40 more


@pytest.mark.slow
def test_a_search_whose_cluster_is_lost_goes_on_from_its_storage_on_another(cluster, tmp_path):
    study = make(tmp_path, cluster.address)
    driver = start(tmp_path)
    try:
        until(lambda: len(nodes_of_batches(tmp_path)) >= EPOCHS * BATCHES + 40 or driver.poll() is not None)
        cluster.shutdown()
        assert driver.wait(120) != 0
    finally:
        driver.kill()
    before = trials(study)
    assert before[0][0] == "COMPLETE" and before[1][0] == "RUNNING"
    assert json.loads((study.storage_folder / "search-1" / "run.json").read_text())["status"] in ("running", "failed")
    result = search(study.with_values({"scale.address": None}))
    assert result.folder == study.storage_folder / "search-1"
    assert trials(study)[0] == before[0]
    assert trials(study)[1][0] == "COMPLETE"
    assert len(nodes_of_batches(tmp_path)) < 2 * EPOCHS * BATCHES + 30
