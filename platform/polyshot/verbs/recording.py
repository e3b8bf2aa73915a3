"""What every verb that trains has in common: a run folder, its run in MLflow, and how both end.

Called by the verbs. It knows nothing of what they do in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from polyshot.progress import Progress
from polyshot.run_folder import RunFolder
from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker


@dataclass(frozen=True)
class Recording:
    """A verb's run folder and its run in MLflow."""

    folder: RunFolder
    run: Run
    tracker: Tracker

    def settle(self, progress: Progress) -> str | None:
        """Wait until MLflow has all of it, or note what it has not; returns the run's id there, which the folder keeps.

        For when the work is done and what it needed is given back; the folder is then the caller's to close.
        """
        if (kept := self.tracker.close()) is not None:
            progress.note(str(kept))
        self.folder.state["mlflow_id"] = mlflow_id = self.tracker.mlflow_id(self.run)
        return mlflow_id


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

    The run in MLflow, of kind `verb`, ends as the work does.

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
    except KeyboardInterrupt:
        folder.close("running")
        raise
    except BaseException:
        folder.close("failed")
        raise
