"""Runs as a training process sees them: it emits events in microseconds and never waits for MLflow.

The verbs open a tracker; events go to a spool file on disk, from where the writer process, which alone loads MLflow,
brings them to the store. This module never imports MLflow, pandas or torch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self

from polyshot.errors import TrackingError
from polyshot.study import Study
from polyshot.tracking import spool as files
from polyshot.tracking.launcher import Writer, start_writer
from polyshot.tracking.store import Store, resolve, without_credentials

Status = Literal["FINISHED", "FAILED", "KILLED"]
KEY = r"[A-Za-z0-9][A-Za-z0-9 _./-]*"


@dataclass(frozen=True)
class Outcome:
    """What MLflow had not taken when the tracker closed; as text, a sentence for the user.

    Attributes:
        kept: events that wait on disk and that `polyshot sync` sends.
        rejected: events that MLflow refused for good; the log says which and why.
        folder: where the events wait.
        reason: why they do.
    """

    kept: int
    rejected: int
    folder: Path
    reason: str

    def __str__(self) -> str:
        words = []
        if self.kept:
            words.append(
                f"{self.kept} tracking events are kept in {self.folder} ({self.reason}); `polyshot sync` sends them"
            )
        if self.rejected:
            words.append(f"MLflow refused {self.rejected} tracking events; {self.folder / files.LOG} says why")
        return "; ".join(words)


class Run:
    """One MLflow run, known by its key from the start and by MLflow's id later."""

    def __init__(self, tracker: Tracker, name: str, key: str):
        self._tracker = tracker
        self.name = name
        self.key = key

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log values of this moment; NaN and infinite ones are legal."""
        values = {name: float(value) for name, value in metrics.items()}
        self._tracker._emit("metrics", self.key, step=int(step), values=values)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; in MLflow, the first value of a parameter stands."""
        self._tracker._emit("params", self.key, values=_texts(params))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._tracker._emit("tags", self.key, values=_texts(tags))

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Log a file, or a folder with all in it, as it is now, under `folder` of the run's artifacts."""
        path = Path(path)
        _require_inside(folder)
        self._tracker._emit("artifact", self.key, file=self._tracker._spool.keep(path, path.name), folder=folder)

    def log_text(self, text: str, file: str) -> None:
        """Log a text as the artifact `file`, such as `plots/notes.txt`."""
        _require_inside(file)
        place = PurePosixPath(file)
        folder = "" if place.parent == PurePosixPath(".") else str(place.parent)
        self._tracker._emit("artifact", self.key, file=self._tracker._spool.keep_text(text, place.name), folder=folder)

    def log_model(self, folder: Path) -> None:
        """Log a model folder, as `saved_model.save_model` writes it, as the run's model."""
        self._tracker._emit("model", self.key, file=self._tracker._spool.keep(Path(folder), "model"))

    def save_view(self, metrics: Sequence[str], params: Sequence[str], *, ascending: bool) -> None:
        """Save, under this run's name, a view of its trials for the UI, ordered by the first metric.

        Args:
            metrics, params: the columns.
        """
        self._tracker._emit("view", self.key, name=self.name, metrics=[*metrics], params=[*params], ascending=ascending)

    def end(self, status: Status = "FINISHED", ended: float | None = None) -> None:
        """
        Args:
            ended: when the run did, in Unix seconds; by default now.
        """
        self._tracker._emit("end", self.key, status=status, **_at(ended))


class Tracker:
    """Emits runs into a spool and keeps one writer process going beside this one."""

    def __init__(self, store: Store, folder: Path):
        """Called by `open`."""
        self.store = store
        self._folder = folder
        self._spool = files.Spool(folder)
        self._closed = False
        self._outcome: Outcome | None = None
        self._writer = self._start_writer()

    @classmethod
    def open(cls, study: Study, *, folder: Path | None = None) -> Tracker:
        """Check the store, which takes seconds at most, and start the writer, which takes its time by itself.

        Args:
            folder: where spools are kept; by default `spool` in the study's storage folder. It must be on a local disk.

        Raises:
            TrackingError: when the store cannot be used, or the folder cannot be written.
        """
        store = resolve(study)
        store.check()
        return cls(store, files.destination((folder or study.storage_folder / "spool").absolute(), store))

    def start_run(
        self,
        name: str,
        key: str,
        parent: Run | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        began: float | None = None,
    ) -> Run:
        """Start a run, or take up the one that was started under this key before.

        Args:
            key: names the run within the study, such as `search-1/trial-0007`; the same when it is resumed.
            began: when what is recorded began, in Unix seconds; by default now.
        """
        if not re.fullmatch(KEY, key):
            raise ValueError(f"a run's key is of letters, digits, ' ', '_', '.', '/' and '-', got {key!r}")
        self._emit(
            "start",
            key,
            name=name,
            parent=parent.key if parent else None,
            params=_texts(params or {}),
            tags=_texts(tags or {}),
            **_at(began),
        )
        return Run(self, name, key)

    def mlflow_id(self, run: Run) -> str | None:
        """MLflow's id of the run, or None while the writer has not come to it."""
        return files.State.load(self._folder).runs.get(run.key)

    def link(self, run: Run) -> str | None:
        """The run's page on the server; None for a store without a server, or while the run is not there yet."""
        state = files.State.load(self._folder)
        if not self.store.is_server or run.key not in state.runs:
            return None
        server = without_credentials(self.store.uri).replace("***@", "").rstrip("/")
        return f"{server}/#/experiments/{state.experiment_id}/runs/{state.runs[run.key]}"

    def close(self, patience_seconds: float = 60.0) -> Outcome | None:
        """Wait until MLflow has every event, no longer than `patience_seconds`; None when it has.

        What it has not taken by then stays on disk, and no process is left behind.
        """
        if self._closed:
            return self._outcome
        deadline = time.monotonic() + patience_seconds
        self._closed = True
        if self._spool.path.stat().st_size == 0:  # no run was started: nobody has to wait for MLflow to load
            files.delete(self._spool.path)
        self._spool.close()
        self._writer.release()
        restarted = False
        while self._spool.path.exists() and time.monotonic() < deadline:
            if self._writer.has_ended:
                if restarted:
                    break
                restarted = True
                self._writer = self._start_writer()
                self._writer.release()
            time.sleep(0.02)
        self._writer.kill()  # done or not: what is half done is done again, once, by the next writer
        self._outcome = self._what_is_left()
        return self._outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _emit(self, event: str, key: str, **content: Any) -> None:
        # The time is taken here, so that a point that is sent twice is the same point.
        self._spool.append({"event": event, "key": key, "time": time.time_ns() // 1_000_000, **content})

    def _start_writer(self) -> Writer:
        try:
            with (self._folder / files.LOG).open("ab") as log:
                return start_writer(self._spool.path, self.store, log)
        except OSError as error:
            raise TrackingError(
                f"storage: the tracking process cannot be started ({error.strerror}); "
                f"check the memory, and the space in {self._folder}"
            ) from None

    def _what_is_left(self) -> Outcome | None:
        state = files.State.load(self._folder)
        name = self._spool.path.name
        kept = files.count_events(self._spool.path, state.offsets.get(name, 0))
        rejected = state.rejected.get(name, 0)
        if not kept and not rejected:
            return None
        reason = state.trouble or f"{self.store.shown} did not take them in time"
        return Outcome(kept, rejected, self._folder, reason)


def _at(seconds: float | None) -> dict[str, int]:
    """An event's own time in place of the moment of its emission."""
    return {} if seconds is None else {"time": round(seconds * 1000)}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: without_credentials(str(value)) for name, value in values.items()}


def _require_inside(place: str) -> None:
    if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        raise ValueError(f"an artifact's place lies within its run's artifacts, got {place!r}")
