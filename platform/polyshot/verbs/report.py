"""`polyshot report`: a run as one HTML page that needs nothing else, written beside it and kept in MLflow.

Every verb's run has one at its end (see `verbs.recording`); the command makes it anew, also of an older run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polyshot.run_folder import find_run, write_atomically

if TYPE_CHECKING:
    from polyshot.report.page import Page

REPORT = "report.html"


def report(run: str | Path, *, storage: str | Path = "polyshot-runs", output: Path | None = None) -> Path:
    """Write the report of a run that has ended; returns its file.

    Args:
        run: a run's folder; a study's file, folder or name (its newest run); or an MLflow run id.
        storage: the folder of runs, in which names and ids are looked up.
        output: the file; by default `report.html` in the run's folder.

    Raises:
        RunError: when there is no such run, it has not ended, or the file cannot be written.
    """
    return write_report(find_run(str(run), storage), output)[0]


def write_report(folder: Path, output: Path | None = None) -> tuple[Path, Page]:
    """As `report`, of the run in `folder`; also returns what the report says."""
    from polyshot.report.kinds import page_of
    from polyshot.report.page import render
    from polyshot.report.recorded import RecordedRun

    page = page_of(RecordedRun.open(folder))
    content, path = render(page).encode(), output or folder / REPORT
    write_atomically(path, lambda file: file.write(content))
    return path, page
