"""Searches whose trials are packed in this process: the same as alone, without Ray, and taken up again like others."""

from __future__ import annotations

import os
import signal

import pytest
from conftest import STUDY, learnable_table

from polyshot.data.prepare import prepare
from polyshot.progress import Progress
from polyshot.searching.packing import pack_size
from polyshot.study import Study
from polyshot.training.loop import TrainingRun
from polyshot.verbs.search import search

SPACE = {
    "tasks.price.weight": {"low": 0.1, "high": 3.0},
    "training.optimiser.learning_rate": {"low": 1e-3, "high": 3e-2, "log": True},
    "training.batch_size": {"choice": [64, 32]},
    "model.encoder.dropout": {"choice": [0.0, 0.0, 0.0, 0.2]},
}


class Impatient(Progress):
    """Presses Ctrl-C once so many trials have ended, and remembers what was noted."""

    def __init__(self, trials: int):
        self.trials = trials
        self.notes: list[str] = []

    def advance(self, activity: str, completed: int, words: str = "") -> None:  # noqa: ARG002
        if activity == "search" and completed == self.trials:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def study(tmp_path) -> Study:
    learnable_table().to_csv(tmp_path / "houses.csv", index=False)
    (tmp_path / "study.yaml").write_text(STUDY)
    search = {"spaces": [], "space": SPACE, "sampler": "random", "trials": 16, "grace_epochs": 1, "pack": 6}
    values = {"storage": str(tmp_path / "runs"), "training.epochs": 6, "training.checkpoint_seconds": 0.0}
    values |= {f"search.{key}": value for key, value in search.items()}
    return Study.load(tmp_path / "study.yaml").with_values(values)


def test_packed_trials_are_stopped_resumed_and_recorded_alone_and_are_what_each_is_alone(study):
    import ray

    seen = Impatient(4)
    with pytest.raises(KeyboardInterrupt):
        search(study, progress=seen)
    seen.trials = -1
    result = search(study, progress=seen)
    assert not ray.is_initialized()
    trials = result.trials.sort_values("number")
    assert trials["number"].tolist() == list(range(16))
    assert set(trials["state"]) == {"finished", "stopped"}
    assert set(trials.loc[trials["state"] == "stopped", "epochs"]) <= {1, 4}
    assert any("could not be packed" in note and "dropout" in note for note in seen.notes)

    prepared = prepare(study)
    for trial in trials.to_dict(orient="records"):
        alone = TrainingRun(study.with_values({key: trial[key] for key in SPACE}), prepared)
        for epoch in alone.epochs():
            if epoch.number == trial["epochs"]:
                break
        assert trial["price/rmse"] == pytest.approx(alone.best.metrics["val/price/rmse"], rel=1e-6)
        assert trial["sold/roc_auc"] == pytest.approx(alone.best.metrics["val/sold/roc_auc"], rel=1e-6)

    from polyshot.tracking.query import runs_table

    runs = runs_table(study).set_index("run")
    states = {"finished": "FINISHED", "stopped": "KILLED"}
    for trial in trials.to_dict(orient="records"):
        run = runs.loc[f"trial {trial['number']:04d}"]
        assert (run["kind"], run["parent"], run["status"]) == ("trial", "search-1", states[trial["state"]])
        assert run["val/price/rmse"] == pytest.approx(trial["price/rmse"])
    kept = max((result.folder / "trials").glob("*/checkpoint.pt"), key=lambda path: path.stat().st_size)
    assert kept.stat().st_size < 100_000  # of one trial's weights, and not of the stack's


def test_packs_are_for_short_searches_of_what_can_be_packed(study, monkeypatch):
    run = TrainingRun(study, prepare(study).for_training())
    auto = {"search.pack": "auto"}
    assert pack_size(study, run) == (6, None)
    assert pack_size(study.with_values(auto), run) == (16, None)  # random search learns nothing from a round
    assert pack_size(study.with_values(auto | {"search.sampler": "tpe"}), run) == (3, None)
    assert pack_size(study.with_values({"search.pack": "never"}), run) == (0, None)
    shared = {"model.sharing.kind": "cross_stitch"}
    assert pack_size(study.with_values(shared), run) == (0, "sharing 'cross_stitch'")
    assert pack_size(study.with_values(shared | auto), run) == (0, None)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert pack_size(study.with_values(auto | {"search.trials": 2_000_000}), run) == (0, None)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert pack_size(study.with_values(auto), run) == (0, None)
