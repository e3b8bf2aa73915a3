"""`polyshot watch`: what a run keeps of how it stands, and what another process sees of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polyshot.errors import RunError
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import write_json
from polyshot.verbs.recording import STANDING, KeptProgress
from polyshot.verbs.watch import watch


class Told(Progress):
    """Remembers what a display is told."""

    def __init__(self) -> None:
        self.words: list[tuple] = []

    def start(self, activity: str, total: int | None = None) -> None:
        self.words.append(("start", activity, total))

    def advance(self, activity: str, completed: int, words: str = "") -> None:
        self.words.append(("advance", activity, completed, words))

    def finish(self, activity: str, words: str = "") -> None:
        self.words.append(("finish", activity, words))

    def best(self, values: dict[str, float], of_any: dict[str, float]) -> None:
        self.words.append(("best", values, of_any))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that goes on."""
    made = tmp_path / "runs" / "houses" / "search-1"
    made.mkdir(parents=True)
    write_json(made / "run.json", {"verb": "search", "status": "running", "started": 1.0})
    return made


def test_progress_is_passed_on_and_kept_seldom(folder: Path) -> None:
    told = Told()
    kept = KeptProgress(told, folder / STANDING)
    kept.start("search", 1000)
    began = time.monotonic()
    for completed in range(1000):
        kept.advance("search", completed, f"{completed} done")
    assert time.monotonic() - began < 0.4  # less than one pause, so that nothing was written
    assert json.loads((folder / STANDING).read_text())["activities"][0]["completed"] == 0
    kept.best({"improvement": 0.1}, {"a/rmse": 2.0})
    kept.finish("search", "over")
    standing = json.loads((folder / STANDING).read_text())
    assert (standing["process"], standing["host"]) == (os.getpid(), socket.gethostname())
    [activity] = standing["activities"]
    assert (activity["completed"], activity["words"], activity["ended"]) == (999, "over", True)
    assert (standing["best"], standing["best_of_any"]) == ({"improvement": 0.1}, {"a/rmse": 2.0})
    assert len(told.words) == 1003


def test_a_watcher_sees_what_the_run_tells_until_it_ends(folder: Path) -> None:
    kept = KeptProgress(SILENT, folder / STANDING)
    kept.start("baseline read", 10)
    kept.finish("baseline read", "best epoch 3")
    kept.start("search", 4)
    told = Told()
    found: list[str] = []
    watcher = threading.Thread(target=lambda: found.append(watch("houses", storage=folder.parents[1], progress=told)))
    watcher.start()
    time.sleep(0.7)
    kept.best({"improvement": 0.1}, {})
    kept.finish("search", "4 done")
    write_json(folder / "run.json", {"verb": "search", "status": "finished", "started": 1.0})
    watcher.join(10)
    assert found == ["finished"]
    assert [words[:2] for words in told.words if words[0] in ("start", "finish")] == [
        ("start", "baseline read"), ("finish", "baseline read"), ("start", "search"), ("finish", "search"),
    ]  # fmt: skip
    assert ("start", "search", 4) in told.words and ("best", {"improvement": 0.1}, {}) in told.words


def test_a_run_whose_process_has_gone_is_interrupted_unless_it_is_elsewhere(folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = {"process": gone.pid, "host": socket.gethostname(), "written": 0.0, "activities": []}
    write_json(folder / STANDING, here)
    assert watch(folder) == "interrupted"
    write_json(folder / STANDING, here | {"host": "elsewhere"})
    found: list[str] = []
    watcher = threading.Thread(target=lambda: found.append(watch(folder)))
    watcher.start()
    watcher.join(1)
    assert found == []
    write_json(folder / "run.json", {"verb": "search", "status": "failed", "started": 1.0})
    watcher.join(10)
    assert found == ["failed"]


def test_the_command_says_how_the_run_ended(polyshot, houses: Path) -> None:
    assert polyshot("train", houses, "--no-baselines").code == 0
    seen = polyshot("watch", houses)
    assert seen.code == 0 and "multi-task model: 4/4" in seen.err and "finished" in seen.err, seen.err
    with pytest.raises(RunError, match="neither a run's folder"):
        watch("nothing", storage=houses.parent)
