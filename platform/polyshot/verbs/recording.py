"""What every verb that trains has in common: a run folder, its run in MLflow, how it stands, and how all of it ends.

Called by the verbs. It knows nothing of what they do in between.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyshot import working_copy
from polyshot.progress import Progress
from polyshot.run_folder import RunFolder, write_json
from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker

log = logging.getLogger(__name__)

STANDING = "progress.json"  # how a run stands, in its folder: see `KeptProgress`
_PAUSE = 0.5  # seconds between two notes of how it stands, at least
_PUSH_PAUSE = 5.0  # and between two that an object store is given


@dataclass(frozen=True)
class Recording:
    """A verb's run folder and its run in MLflow."""

    folder: RunFolder
    run: Run
    tracker: Tracker

    def kept(self, progress: Progress) -> Progress:
        """The same progress, which is also kept in the run's folder for who looks in from elsewhere."""
        return KeptProgress(progress, self.folder.path / STANDING)

    def finish(self, progress: Progress) -> None:
        """The run has ended well; notes what an object store could not be given of it."""
        if (missing := self.folder.close("finished")) is not None:
            progress.note(missing)

    def settle(self, progress: Progress) -> str | None:
        """Wait until MLflow has all of it, or note what it has not; returns the run's id there, which the folder keeps.

        For when the work is done and what it needed is given back; the run is then the caller's to `finish`.
        """
        if (kept := self.tracker.close()) is not None:
            progress.note(str(kept))
        self.folder.state["mlflow_id"] = mlflow_id = self.tracker.mlflow_id(self.run)
        return mlflow_id


class KeptProgress(Progress):
    """Passes on what a verb tells, and keeps how it stands in a file, of which a reader sees a whole one.

    The file holds the process and its host, when it was written (Unix seconds), the activities in their order (name,
    total, completed, words, started, ended) and the best trial so far. It is written at most twice a second, and at the
    start and the end of every activity.
    """

    def __init__(self, shown: Progress, path: Path):
        self._shown = shown
        self._path = path
        self._activities: dict[str, dict[str, Any]] = {}
        self._best: dict[str, dict[str, float]] = {}
        self._written = self._pushed = 0.0

    def start(self, activity: str, total: int | None = None) -> None:
        self._shown.start(activity, total)
        own = {"total": total, "completed": 0, "words": "", "started": time.time(), "ended": False}
        self._activities[activity] = own
        self._write()

    def advance(self, activity: str, completed: int, words: str = "") -> None:
        self._shown.advance(activity, completed, words)
        self._activities[activity] |= {"completed": completed, "words": words}
        self._write_soon()

    def finish(self, activity: str, words: str = "") -> None:
        self._shown.finish(activity, words)
        self._activities[activity] |= {"words": words, "ended": True}
        self._write()

    def best(self, values: dict[str, float], of_any: dict[str, float]) -> None:
        self._shown.best(values, of_any)
        self._best = {"best": values, "best_of_any": of_any}
        self._write_soon()

    def note(self, text: str) -> None:
        self._shown.note(text)

    def _write_soon(self) -> None:
        if time.monotonic() - self._written >= _PAUSE:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        about = {"process": os.getpid(), "host": socket.gethostname(), "written": time.time()}
        activities = [{"name": name} | own for name, own in self._activities.items()]
        write_json(self._path, about | {"activities": activities} | self._best)
        if self._written - self._pushed >= _PUSH_PAUSE:
            working_copy.push(self._path)
            self._pushed = self._written


@contextmanager
def ending(run: Run) -> Iterator[None]:
    """The run ends as the work inside does: finished, killed (by Ctrl-C: the same command goes on) or failed."""
    try:
        yield
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end()


@contextmanager
def recorded(
    tracker: Tracker,
    study: Study,
    verb: str,
    digest: str,
    *,
    fresh: bool = False,
    reopen_finished: bool = False,
    params: Mapping[str, Any] | None = None,
) -> Iterator[Recording]:
    """The work of `verb` inside, which goes on where it was interrupted (see `RunFolder.open`).

    The run in MLflow, of kind `verb`, ends as the work does. One that has finished has its report (see `verbs.report`)
    beside it and in MLflow.

    Args:
        params: of the run in MLflow, beside those of the study.
    """
    folder = RunFolder.open(study, verb, digest, fresh=fresh, reopen_finished=reopen_finished)
    run = tracker.start_run(
        folder.key,
        key=folder.key,
        params=study.flat() | dict(params or {}),
        tags={"polyshot.kind": verb, "polyshot.study": study.name},
    )
    try:
        with ending(run):
            run.log_artifact(folder.path / "study.yaml")
            yield Recording(folder, run, tracker)
            _log_report(folder, run)
    except BaseException as error:
        missing = folder.close("running" if isinstance(error, KeyboardInterrupt) else "failed")
        if missing is not None:
            error.add_note(missing)
        raise


def _log_report(folder: RunFolder, run: Run) -> None:
    """Write the run's report beside it, and log it; its verdict becomes the run's description in MLflow."""
    from polyshot.verbs.report import write_report

    try:
        path, page = write_report(folder.path)
        run.log_artifact(path)
        run.set_tags({"mlflow.note.content": "\n\n".join([f"**{page.verdict}**", *page.lead])})
    except Exception:  # a page that cannot be drawn must not cost the work that it is about
        log.exception("%s: the report cannot be written", folder.path)
