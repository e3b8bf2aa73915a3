"""The process that brings spooled events to MLflow, beside training and not in its way.

Forked by the launcher, one for each tracker; of all writers of a destination, one at a time works, for all of them.
It ends when its producer has gone and its spool is written.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyshot.tracking import spool as files
from polyshot.tracking.spool import State
from polyshot.tracking.store import Store, secrets_of, without_credentials, without_login

if TYPE_CHECKING:
    from polyshot.tracking.replay import Replay

REST = 1.0  # seconds between two looks into the spools, at least
SHARE = 20  # … and this many times what the last look took: at most 5 % of a core
LONGEST_PAUSE = 10.0  # seconds between two attempts while the server is away
LINGER = 60.0  # seconds that a writer whose producer has gone waits for a server
IMPORT_SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_CONFIGURE_LOGGING": "false"}
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60"}  # seconds

log = logging.getLogger(__name__)


def write(spool: Path, store: Store) -> int:
    """Serve one producer's spool until it is written and the producer, at the end of standard input, has gone.

    Returns:
        The exit status of the process, which is a writer's and nothing else.
    """
    os.nice(5)
    store = prepare_mlflow(store)
    try:
        return _serve(spool, store)
    except Exception:
        log.exception("the writer stopped")
        return 1


def prepare_mlflow(store: Store) -> Store:
    """Bound MLflow's waits, and have it and its libraries log what goes wrong, to standard error, without secrets.

    Returns:
        The store as MLflow is to see it: a server's address without user and password.
    """
    uri, login = without_login(store.uri)
    os.environ |= login | {"MLFLOW_TRACKING_URI": uri}
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # it would repeat in silence; the writer repeats itself
    for name, seconds in PATIENCE.items():
        os.environ.setdefault(name, seconds)
    os.environ |= IMPORT_SETTINGS
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"  # a model would take the current folder's lock file along
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Discreet("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s", secrets_of(store.uri))
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    return replace(store, uri=uri)


class _Discreet(logging.Formatter):
    def __init__(self, pattern: str, secrets: list[str]):
        super().__init__(pattern)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record), *self._secrets)


# --- serving a producer ----------------------------------------------------------------------------------------------


class _Producer:
    """The process at the other end of standard input."""

    gone = False

    def wait(self, seconds: float) -> None:
        """Rest, but no longer than the producer lives."""
        if self.gone:
            time.sleep(min(seconds, LONGEST_PAUSE))
        elif select.select([sys.stdin], [], [], seconds)[0]:
            self.gone = not os.read(sys.stdin.fileno(), 4096)


def _serve(spool: Path, store: Store) -> int:
    producer = _Producer()
    folder = spool.parent
    with (folder / files.LOCK).open("a") as lock:
        while not files.try_lock(lock):
            if not spool.exists():
                return 0  # another writer has written it to the end
            producer.wait(0.2)
        return _work(spool, store, producer)


def _work(spool: Path, store: Store, producer: _Producer) -> int:
    replay: Replay | None = None
    pause, failing_since = 0.5, 0.0
    # A store is made only for a run.
    while not producer.gone and not any(path.stat().st_size for path in files.spools(spool.parent)):
        producer.wait(0.1)
    if not any(files.spools(spool.parent)):
        return 0
    while True:
        started = time.monotonic()
        try:
            if replay is None:
                replay = connect(spool.parent, store)
            replay_all(replay)
        except Exception as error:  # noqa: BLE001 - whatever it is, the events stay and are tried again
            failing_since = failing_since or started
            log.warning("%s: %s", type(error).__name__, error)
            _note_trouble(spool.parent, replay, store, error)
            if producer.gone and time.monotonic() - failing_since > LINGER:
                return 1
            producer.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            continue
        pause, failing_since = 0.5, 0.0
        if not spool.exists():
            return 0
        producer.wait(max(REST, min(LONGEST_PAUSE, SHARE * (time.monotonic() - started))))


def _note_trouble(folder: Path, replay: Replay | None, store: Store, error: Exception) -> None:
    state = replay.state if replay is not None else State.load(folder)
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    state.trouble = without_credentials(
        f"MLflow at {store.shown} does not take them: {line[:300]}", *secrets_of(store.uri)
    )
    try:
        state.save(folder)
    except OSError:
        log.exception("the state cannot be saved")


def connect(folder: Path, store: Store) -> Replay:
    """Load MLflow, create the store if it is a SQLite file that is not there yet, and find or create the experiment."""
    if store.sqlite_file is not None:
        create_sqlite(store.sqlite_file)
    from polyshot.tracking.replay import Replay

    return Replay(folder, store)


def replay_all(replay: Replay) -> int:
    """Replay what there is, the oldest spool first; returns the number of events.

    The spools of dead producers are finished before anything newer: a run that they began may be taken up again there.
    """
    count = 0
    for spool in files.spools(replay.folder):
        live = files.is_live(spool)  # asked before reading: what a dead producer wrote is all there
        while events := replay.chunk(spool):
            count += events
        if not live:
            replay.finish(spool)
    if replay.state.trouble:
        replay.state.trouble = ""
        replay.state.save(replay.folder)
    return count


def create_sqlite(file: Path) -> None:
    """Create MLflow's tables in a file that appears only when it is whole; processes that start at once do it once."""
    if file.exists() and file.stat().st_size > 0:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(file.with_name(f".{file.name}.lock")):
        if file.exists() and file.stat().st_size > 0:
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        logging.getLogger("alembic").setLevel(logging.WARNING)
        partial = file.with_name(f".{file.name}.partial")
        partial.unlink(missing_ok=True)
        with _unsynced():
            SqlAlchemyStore(f"sqlite:///{partial}", str(file.parent / "mlartifacts")).engine.dispose()
        partial.replace(file)


@contextmanager
def _unsynced() -> Iterator[None]:
    """Tables are made by dozens of migrations; a file that nobody has yet needs none of them on the disk at once."""

    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def off(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", off)
    try:
        yield
    finally:
        event.remove(Engine, "connect", off)
