"""The files between a run's process and the writer process: events as JSON lines, kept files, and the writer's state.

A spool folder belongs to one destination (a store and an experiment). In it, every producer appends to a spool of its
own, and one writer at a time, the one that holds the lock, replays them all. Nothing here knows MLflow.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from polyshot.errors import TrackingError
from polyshot.tracking.store import Store, without_credentials

Event = dict[str, Any]  # event, key, time (Unix milliseconds), and what the event is about

SUFFIX = ".jsonl"
STATE, IDENTITY, LOCK, LOG = "state.json", "identity.json", "writer.lock", "writer.log"
TEXT_SUFFIXES = (".yaml", ".yml", ".json", ".txt", ".md", ".html", ".csv", ".toml", ".log")
TEXT_LIMIT = 1 << 20  # bytes; a larger file is no study or report of ours


def destination(spools: Path, store: Store) -> Path:
    """The folder for what goes to `store`, made where there is none.

    Raises:
        TrackingError: when it cannot be made.
    """
    folder = spools / hashlib.sha256(f"{store.shown}\n{store.experiment}".encode()).hexdigest()[:12]
    identity = {"id": uuid.uuid4().hex, "uri": store.shown, "experiment": store.experiment}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / IDENTITY).exists():
            partial = folder / f".{identity['id']}"
            partial.write_text(json.dumps(identity), encoding="utf-8")
            with suppress(FileExistsError):
                os.link(partial, folder / IDENTITY)  # the first one wins
            partial.unlink()
    except OSError as error:
        raise TrackingError(
            f"storage: the folder {folder} cannot be written ({error.strerror}); mend its permissions or choose another"
        ) from None
    return folder


def identity(folder: Path) -> dict[str, str]:
    """`id`, `uri` (without credentials) and `experiment` of a destination folder."""
    return json.loads((folder / IDENTITY).read_text(encoding="utf-8"))


# --- one producer's side ---------------------------------------------------------------------------------------------


class Spool:
    """The events of one producer. The file is locked as long as the producer lives: a writer sees that it has gone."""

    def __init__(self, folder: Path):
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        self.path = folder / name
        self._lock = threading.Lock()
        self._kept = 0
        self._torn = False
        hidden = folder / f".{name}"  # named for the writer only once it is locked
        try:
            self._file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            hidden.rename(self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    def append(self, event: Event) -> None:
        """Write one event; once this returns, it survives the end of the process.

        Raises:
            TrackingError: when the spool cannot be written, such as on a full disk.
        """
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                written = os.write(self._file, b"\n" + line if self._torn else line)
            except OSError as error:
                raise self._unwritable(error) from None
            self._torn = written < len(line)
            if self._torn:
                raise self._unwritable(OSError(0, "the disk is full"))

    def keep(self, source: Path, name: str) -> str:
        """Copy a file or folder beside the spool, as `name`; returns the copy's path within the spool's folder.

        The producer may change or delete its own long before a server that is away has it.
        """
        kept = self._new_place() / name
        try:
            if source.is_dir():
                shutil.copytree(source, kept)
            else:
                shutil.copy2(source, kept)
            for file in [kept] if kept.is_file() else kept.rglob("*"):
                _blot_credentials(file)
        except shutil.Error as error:
            raise TrackingError(f"tracking: {source} cannot be copied to {kept.parent} ({error})") from None
        except OSError as error:
            raise self._unwritable(error) from None
        return str(kept.relative_to(self.path.parent))

    def keep_text(self, text: str, name: str) -> str:
        """Write a text beside the spool, as the file `name`; returns its path within the spool's folder."""
        kept = self._new_place() / name
        try:
            kept.write_text(without_credentials(text), encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from None
        return str(kept.relative_to(self.path.parent))

    def close(self) -> None:
        """No more events: whoever writes may finish and delete the spool."""
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing is not enough, a forked child may share the file
        os.close(self._file)

    def _new_place(self) -> Path:
        with self._lock:
            self._kept += 1
            place = kept_files(self.path) / str(self._kept)
        try:
            place.mkdir(parents=True)
        except OSError as error:
            raise self._unwritable(error) from None
        return place

    def _unwritable(self, error: OSError) -> TrackingError:
        return TrackingError(
            f"storage: {error.filename or self.path} cannot be written ({error.strerror}); "
            "free space there or mend its permissions"
        )


def _blot_credentials(file: Path) -> None:
    if file.suffix not in TEXT_SUFFIXES or not file.is_file() or file.stat().st_size > TEXT_LIMIT:
        return
    raw = file.read_bytes()
    if b"://" in raw and b"@" in raw:
        text = raw.decode("utf-8", errors="surrogateescape")
        file.write_bytes(without_credentials(text).encode("utf-8", errors="surrogateescape"))


# --- the writer's side -----------------------------------------------------------------------------------------------


@dataclass
class State:
    """What the writer has done; losing it costs time, not runs: they are found again by their tags.

    Attributes:
        experiment_id: MLflow's id of the experiment.
        runs: MLflow's run id by key.
        offsets: bytes of each spool that MLflow has.
        rejected: how many events of a spool MLflow has refused for good.
        reopened: keys of runs that were started again and have not ended.
        uncertain: keys of runs whose creation was cut short, so that MLflow may have one more of them.
        trouble: why the writer does not get on, in words; empty when it does.
    """

    experiment_id: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    reopened: list[str] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)
    trouble: str = ""

    @classmethod
    def load(cls, folder: Path) -> State:
        try:
            return cls(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        partial = folder / f".{STATE}.partial"
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(folder / STATE)


def spools(folder: Path) -> list[Path]:
    """The spools, the oldest first."""
    return sorted(folder.glob(f"[!.]*{SUFFIX}"))


def kept_files(spool: Path) -> Path:
    """The folder of files that a spool's events speak of."""
    return spool.with_suffix(".files")


def is_live(spool: Path) -> bool:
    """Whether the spool's producer may still write."""
    try:
        with spool.open("rb") as file:
            return not try_lock(file)
    except FileNotFoundError:
        return False


def try_lock(file: IO[Any]) -> bool:
    """Lock the file if nobody else has; the lock ends with the file's closing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, after waiting for it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_events(spool: Path, offset: int, limit: int) -> tuple[list[tuple[int, Event | None]], int]:
    """Events from byte `offset` on, about `limit` bytes of them: each with its place, and the place after the last.

    A line that is not whole is left for later; a broken one, which a full disk leaves, gives None.
    """
    events: list[tuple[int, Event | None]] = []
    end = offset
    with spool.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or end - offset > limit:
                break
            try:
                events.append((end, json.loads(line)))
            except ValueError:
                events.append((end, None))
            end += len(line)
    return events, end


def count_events(spool: Path, offset: int) -> int:
    """Whole events from byte `offset` on."""
    try:
        with spool.open("rb") as file:
            file.seek(offset)
            return sum(line.endswith(b"\n") for line in file)
    except FileNotFoundError:
        return 0


def delete(spool: Path) -> None:
    """Remove a spool that MLflow has in full, and its files."""
    shutil.rmtree(kept_files(spool), ignore_errors=True)
    spool.unlink(missing_ok=True)
