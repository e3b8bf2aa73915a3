"""The folder of one run: `<storage>/<study>/<verb>-<number>`, what state it is in, and who works in it.

A run that was interrupted is taken up again by the same command with the same study; one that has ended stays as it is.
Where the storage is an object store's, this is the working copy's folder, and what is in the store counts.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from polyshot import working_copy
from polyshot.errors import RunError
from polyshot.study import Study

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunFolder:
    """An open run folder, locked against other processes until `close`."""

    path: Path
    state: dict[str, Any]  # verb, digest, status (running, finished, failed), started (Unix seconds)
    resumed: bool
    _lock: IO[str] = field(repr=False)

    @classmethod
    def open(
        cls, study: Study, verb: str, digest: str, *, fresh: bool = False, reopen_finished: bool = False
    ) -> RunFolder:
        """The newest unfinished run of `verb` with this `digest`, else a new one.

        Args:
            digest: of all in the study that must be equal for a run to go on.
            fresh: start a new run in any case.
            reopen_finished: a finished run of this digest is opened again as well (a search with a larger budget).

        Raises:
            RunError: when another process works in the run that would be resumed, or the folder cannot be made.
            ResourceError: when the storage is an object store's that cannot be used.
        """
        working_copy.check(study.storage_folder)
        with _one_at_a_time(study.storage_folder):
            for earlier in [] if fresh else runs(study, verb, digest):
                state = _read_state(earlier)
                if state["status"] in ("running", "failed") or reopen_finished:
                    return cls._locked(earlier, resumed=True)
            path = study.storage_folder / f"{verb}-{max(_numbers(study, verb), default=0) + 1}"
            state = {"verb": verb, "digest": digest, "started": time.time()}
            path.mkdir()
            (path / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
            return cls._locked(path, state, resumed=False)

    @classmethod
    def _locked(cls, path: Path, state: dict[str, Any] | None = None, *, resumed: bool) -> RunFolder:
        lock = (path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunError(
                f"{path}: another process ({lock.read().strip() or 'unknown'}) works on this run; "
                "wait for it, or start a separate run with --fresh"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        if resumed:  # and nobody else here writes in it
            working_copy.pull_folder(path, over=True)
        folder = cls(path, state or _read_state(path), resumed, lock)
        folder.set_status("running")
        return folder

    @property
    def key(self) -> str:
        """Names the run within its study, such as `search-2`."""
        return self.path.name

    @property
    def status(self) -> str:
        return str(self.state["status"])

    def set_status(self, status: str) -> None:
        self.state["status"] = status
        write_json(self.path / "run.json", self.state)
        working_copy.push(self.path)

    def close(self, status: str) -> str | None:
        """The run has come to this; returns what an object store could not be given of it, in words."""
        self.set_status(status)
        missing = working_copy.settle()
        self._lock.close()
        return missing


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of processes that start at once, the first has chosen its run's folder and locked it before another looks.

    Raises:
        RunError: when nothing can be made in `folder`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".opening").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise RunError(f"storage: {folder} cannot be written ({error.strerror}); choose another") from error


def runs(study: Study, verb: str, digest: str) -> Iterator[Path]:
    """The folders of the runs of `verb` with this `digest`, whatever their state, the newest first."""
    working_copy.pull_folder(study.storage_folder, f"{verb}-*/run.json")
    for number in sorted(_numbers(study, verb), reverse=True):
        folder = study.storage_folder / f"{verb}-{number}"
        if _read_state(folder).get("digest") == digest:
            working_copy.pull_folder(folder)
            yield folder


def _numbers(study: Study, verb: str) -> list[int]:
    names = (name.removeprefix(f"{verb}-") for name in working_copy.names(study.storage_folder))
    return [int(name) for name in names if name.isdigit()]


def latest_run(study_folder: Path, verbs: tuple[str, ...] = ("train", "search", "transfer")) -> Path:
    """The folder of the study's newest run that has a model.

    Raises:
        RunError: when there is none.
    """
    working_copy.pull_folder(study_folder, "*-*/run.json", "*-*/model/study.yaml")
    runs = [folder for verb in verbs for folder in study_folder.glob(f"{verb}-*") if (folder / "model").is_dir()]
    if not runs:
        raise RunError(f"{study_folder}: no run with a trained model; run `polyshot train` first")
    return _newest(runs)


def find_run(run: str, storage: str | Path) -> Path:
    """The folder of the run that `run` names: a run's folder or `<study>/<run>` in `storage`; a study's file, folder or
    name (its newest run); or an MLflow run id.

    Raises:
        RunError: when it names none.
    """
    storage = working_copy.folder_of(storage)
    places = [Study.load(run).storage_folder] if run.endswith((".yaml", ".yml")) else [Path(run), storage / run]
    for place in places:
        working_copy.pull_folder(place, "run.json", "*-*/run.json")
        if (place / "run.json").is_file():
            working_copy.pull_folder(place)
            return place
        if own := [state.parent for state in place.glob("*-*/run.json")]:
            return _newest(own)
    return tracked_run(run, storage)


def _newest(folders: list[Path]) -> Path:
    newest = max(folders, key=lambda folder: _read_state(folder).get("started", 0.0))
    working_copy.pull_folder(newest)
    return newest


def tracked_run(run: str, storage: Path) -> Path:
    """The folder in `storage` of the MLflow run with the id `run`: the last that a user's word for a run may mean.

    Raises:
        RunError: when there is none.
    """
    working_copy.pull_folder(storage, "*/*/run.json")
    for state in storage.glob("*/*/run.json"):
        if _read_state(state.parent).get("mlflow_id") == run:
            working_copy.pull_folder(state.parent)
            return state.parent
    raise RunError(
        f"'{run}' is neither a run's folder, nor a study file, nor a study or an MLflow run in {storage}; "
        "give one of these"
    )


def write_json(path: Path, value: Any) -> None:
    """As `write_atomically`."""
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=2).encode()))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Rows as JSON with every digit (pandas rounds), and null for what is undefined; as `write_atomically`."""
    write_json(path, table.astype(object).where(table.notna(), None).to_dict(orient="records"))


def write_improvement(folder: Path, improvement: float, interval: tuple[float, float], seeds: int = 1) -> None:
    """Keep Δm on test and its interval, which is over test rows or, of several, over seeds, in a run's folder."""
    values = dict(zip(("improvement", "low", "high"), (improvement, *interval), strict=True))
    known = {name: value if math.isfinite(value) else None for name, value in values.items()}
    write_json(folder / "improvement.json", known | {"seeds": seeds})


def read_table(path: Path) -> pd.DataFrame:
    """The rows that `write_table` wrote."""
    import pandas as pd

    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Have `write` fill the file: a reader sees the old file or the new one.

    Raises:
        RunError: when the disk does not take it; what was there before stays.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); make room there, or choose another storage"
        ) from error


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
