"""Checkpoints survive kills, damage and disks that take no more."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from polyshot.errors import RunError
from polyshot.run_folder import write_json
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint


def _saved(path, *numbers):
    for number in numbers:
        save_checkpoint({"number": number, "weights": torch.full((100,), float(number))}, path)
    return path


def test_what_was_saved_is_loaded(tmp_path):
    state = {"weights": torch.randn(3, 4), "steps": 7, "history": [{"loss": float("nan"), "name": "é"}], "none": None}
    save_checkpoint(state, tmp_path / "new" / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path / "new" / "checkpoint.pt")
    assert loaded is not None
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert repr(loaded) == repr(state)


def test_where_nothing_was_saved_nothing_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None


def test_the_newest_is_loaded_and_only_it_and_the_one_before_are_kept(tmp_path):
    path = _saved(tmp_path / "checkpoint.pt", 1, 2, 3)
    assert load_checkpoint(path)["number"] == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "checkpoint.pt.previous"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _empty(path):
    path.write_bytes(b"")


DAMAGES = [_truncate, _flip_a_bit, _empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_seen_and_the_one_before_used(tmp_path, damage):
    path = _saved(tmp_path / "checkpoint.pt", 1, 2)
    damage(path)
    assert load_checkpoint(path)["number"] == 1


def test_a_kill_between_the_two_renames_leaves_the_one_before(tmp_path):
    path = _saved(tmp_path / "checkpoint.pt", 1, 2)
    path.rename(tmp_path / "checkpoint.pt.previous")
    assert load_checkpoint(path)["number"] == 2


def test_damage_to_all_of_them_is_said(tmp_path):
    path = _saved(tmp_path / "checkpoint.pt", 1, 2)
    for file in tmp_path.iterdir():
        _flip_a_bit(file)
    with pytest.raises(RunError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "remove it" in str(caught.value)


def test_a_folder_that_takes_no_files_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError) as caught:
        save_checkpoint({}, tmp_path / "file" / "checkpoint.pt")
    assert "file/checkpoint.pt: the checkpoint cannot be written" in str(caught.value)


def test_a_full_disk_is_said_and_the_one_before_kept(tmp_path):
    path = _saved(tmp_path / "checkpoint.pt", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RunError) as caught:
            _saved(path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written" in str(caught.value)
    assert load_checkpoint(path)["number"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"number": Malicious()}, path)
    with pytest.raises(RunError):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from polyshot.training.checkpoint import save_checkpoint
number = 0
while True:
    number += 1
    save_checkpoint({"number": number, "weights": torch.full((200_000,), float(number))}, Path(sys.argv[1]))
"""
    path = tmp_path / "checkpoint.pt"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    while not (tmp_path / "checkpoint.pt.previous").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for pause in (0.003, 0.007, 0.011, 0.002, 0.005):  # stopped at odd moments, the files must be whole at each
        time.sleep(pause)
        process.send_signal(signal.SIGSTOP)
        state = load_checkpoint(path)
        assert (state["weights"] == state["number"]).all()
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    state = load_checkpoint(path)
    assert (state["weights"] == state["number"]).all()


def test_a_full_disk_under_any_file_of_a_run_is_said_and_the_old_file_stays(tmp_path):
    write_json(tmp_path / "run.json", {"status": "running"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RunError, match=r"run.json: cannot be written \(File too large\); make room there"):
            write_json(tmp_path / "run.json", {"status": "x" * 2000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    assert "running" in (tmp_path / "run.json").read_text()
