"""What goes between a working copy and an object store, and in which order; the store is fsspec's in memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import fsspec
import pytest

from polyshot import working_copy
from polyshot.errors import ResourceError

ADDRESS = "memory://bucket/runs"


@pytest.fixture
def store():
    """The file system that stands for an object store; empty before and after."""
    system = fsspec.filesystem("memory")
    system.makedirs("/bucket/runs", exist_ok=True)
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Goes to another machine by its name; gives the folder of the storage there."""

    def go(machine: str) -> Path:
        monkeypatch.setenv(working_copy.FOLDER, str(tmp_path / machine))
        return working_copy.folder_of(ADDRESS)

    return go


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_path_and_an_address_stand_for_each_other(on, tmp_path):
    one = on("one") / "houses" / "train-1"
    assert working_copy.address_of(one) == "memory://bucket/runs/houses/train-1"
    other = on("other") / "houses" / "train-1"
    assert one != other and working_copy.here(one) == other
    assert working_copy.folder_of(tmp_path) == working_copy.here(tmp_path) == tmp_path
    assert working_copy.address_of(tmp_path) is None


def test_of_a_folder_outside_nothing_is_carried(tmp_path):
    path = written(tmp_path / "run.json", "{}")
    threads = threading.active_count()
    working_copy.push(path)
    working_copy.pull(path)
    working_copy.pull_folder(tmp_path)
    assert working_copy.has(path) and not working_copy.has(tmp_path / "none")
    assert working_copy.names(tmp_path) == {"run.json"}
    working_copy.remove(path)
    assert not path.exists() and threading.active_count() == threads


@pytest.mark.usefixtures("store")
def test_what_one_machine_pushed_another_has(on):
    run = on("one") / "houses" / "train-1"
    for name in ("run.json", "model/weights.pt", "seed-0/metrics.json"):
        written(run / name, name)
    for name in ("lock", "checkpoint.pt", "seed-0/checkpoint.pt", "ray-train/log", "run.json.partial-7", ".seen"):
        written(run / name, "left where it is")
    working_copy.push(run)
    working_copy.push(run / "checkpoint.pt")
    assert working_copy.settle() is None

    home = on("other")
    assert not home.exists() and working_copy.names(home / "houses") == {"train-1"}
    working_copy.pull_folder(home / "houses", "*/run.json")
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["run.json"]
    run = home / "houses" / "train-1"
    working_copy.pull_folder(run)
    found = {path.relative_to(run).as_posix(): path.read_text() for path in run.rglob("*") if path.is_file()}
    assert found == {name: name for name in ("run.json", "model/weights.pt", "seed-0/metrics.json")}
    assert working_copy.has(run / "checkpoint.pt")
    assert not working_copy.has(run / "seed-0/checkpoint.pt")


def test_only_what_has_changed_is_sent_and_what_names_a_file_comes_after_it(on, store):
    run = on("one") / "run"
    for number, name in enumerate(("z", "m", "a")):
        os.utime(written(run / name, name), (number, number))
    working_copy.push(run)
    working_copy.settle()
    times = {name: store.created(f"/bucket/runs/run/{name}") for name in "zma"}
    assert times["z"] < times["m"] < times["a"]
    written(run / "m", "anew")
    working_copy.push(run)
    working_copy.settle()
    assert store.cat_file("/bucket/runs/run/m") == b"anew"
    assert {name: store.created(f"/bucket/runs/run/{name}") for name in "za"} == {name: times[name] for name in "za"}


@pytest.mark.usefixtures("store")
def test_a_change_that_did_not_reach_the_store_is_kept_unless_another_machine_went_on(on):
    on("one")
    state = written(working_copy.folder_of(ADDRESS) / "run.json", "first")
    working_copy.push(state)
    working_copy.settle()
    written(state, "not sent")
    working_copy.pull(state, over=True)
    assert state.read_text() == "not sent"

    other = on("other") / "run.json"
    working_copy.pull(other)
    working_copy.push(written(other, "the other went on"))
    working_copy.settle()

    on("one")
    working_copy.pull(state)
    assert state.read_text() == "not sent"
    working_copy.pull(state, over=True)
    assert state.read_text() == "the other went on"


@pytest.mark.usefixtures("store")
def test_what_is_removed_on_one_machine_is_gone_on_the_others(on):
    trial = on("one") / "trials" / "trial-0001"
    checkpoint = written(trial / "checkpoint.pt", "a model")
    working_copy.push(checkpoint)
    working_copy.settle()
    other = on("other") / "trials" / "trial-0001" / "checkpoint.pt"
    assert working_copy.has(other)

    on("one")
    working_copy.remove(trial)
    working_copy.settle()
    assert not trial.exists() and working_copy.names(trial.parent) == set()
    on("other")
    assert not working_copy.has(other)


@pytest.mark.usefixtures("store")
def test_a_folder_that_is_released_leaves_nothing_but_what_the_store_has_not(on):
    trial = on("node") / "trials" / "trial-0001"
    sent, unsent = written(trial / "checkpoint.pt", "sent"), written(trial / "notes", "unsent")
    reserve = written(trial / "checkpoint.pt.previous", "the one before")
    working_copy.push(sent)
    working_copy.release(trial)
    working_copy.settle()
    assert not sent.exists() and not reserve.exists() and unsent.exists()
    assert working_copy.has(sent)


def test_an_object_of_any_name_stays_in_the_folder(on, store, tmp_path):
    store.pipe_file("/bucket/runs/houses/train-1/run.json", b"{}")
    for name in ("../../../../../outside/run.json", "../../../../../run.json"):
        store.store[f"/bucket/runs/houses/{name}"] = store.store["/bucket/runs/houses/train-1/run.json"]
    working_copy.pull_folder(on("one") / "houses", "*/run.json")
    working_copy.pull_folder(on("one") / "houses")
    found = [path.parent.name for path in tmp_path.rglob("run.json")]
    assert found == ["train-1"]


def test_a_store_that_nobody_knows_is_said_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv(working_copy.FOLDER, str(tmp_path))
    with pytest.raises(ResourceError) as fault:
        working_copy.check(working_copy.folder_of("nosuch://bucket/runs"))
    assert str(fault.value).startswith("storage: nosuch://bucket/runs cannot be used (Protocol not known: nosuch)")
    with pytest.raises(ResourceError, match=r"needs another package \(Install adlfs .*\); `pip install adlfs`"):
        working_copy.check(working_copy.folder_of("abfs://container/runs"))
