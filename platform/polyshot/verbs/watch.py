"""`polyshot watch`: how a run stands that another process works on, from what it keeps in its folder."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from polyshot import working_copy
from polyshot.errors import RunError
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import find_run
from polyshot.verbs.recording import STANDING

_LOOK_SECONDS = 0.5
_LOOK_SECONDS_AT_STORE = 5.0  # where every look is a request


def watch(run: str | Path, *, storage: str | Path = "polyshot-runs", progress: Progress = SILENT) -> str:
    """Show a run's progress until it ends; returns how: finished, failed, or interrupted (its process has gone).

    Args:
        run: a run's folder; a study's file, folder or name (its newest run); or an MLflow run id.
        storage: the folder of runs, in which names and ids are looked up.

    Raises:
        RunError: when there is no such run.
    """
    folder = find_run(str(run), storage)
    seen = _Seen(progress)
    pause = _LOOK_SECONDS if working_copy.address_of(folder) is None else _LOOK_SECONDS_AT_STORE
    while True:
        for name in ("run.json", STANDING):
            working_copy.pull(folder / name)
        status = _read(folder / "run.json")["status"]  # before the rest: what is read then is the last
        standing = _read(folder / STANDING)
        seen.show(standing)
        if status != "running":
            return str(status)
        if standing and _has_gone(standing):
            return "interrupted"
        time.sleep(pause)


class _Seen:
    """Tells a display what is new in the record of a run."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._ended: dict[str, bool] = {}

    def show(self, standing: dict[str, Any]) -> None:
        for activity in standing.get("activities", []):
            name, words = activity["name"], activity["words"]
            if name not in self._ended:
                self._progress.start(name, activity["total"])
                self._ended[name] = False
            if not self._ended[name]:
                self._progress.advance(name, activity["completed"], words)
            if activity["ended"] and not self._ended[name]:
                self._progress.finish(name, words)
                self._ended[name] = True
        if "best" in standing:
            self._progress.best(standing["best"], standing["best_of_any"])


def _has_gone(standing: dict[str, Any]) -> bool:
    """Whether the process is known not to run any more; of one on another machine nothing is known."""
    if standing["host"] != socket.gethostname():
        return False
    try:
        os.kill(standing["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False


def _read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where the run has not come so far."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, OSError) as error:
        raise RunError(f"{path}: cannot be read ({error}); see whether the disk is full") from error
