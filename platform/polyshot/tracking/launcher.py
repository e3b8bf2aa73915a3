"""Where writers start: a process that has loaded MLflow forks them, for all trackers of one Python process.

MLflow takes many seconds of CPU to import: a notebook or script that calls several verbs pays for it once. Used by the
tracker; it touches no spool and no store.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, ClassVar

from polyshot.errors import TrackingError
from polyshot.tracking.store import Store
from polyshot.tracking.writer import IMPORT_SETTINGS, write

_NUMBER = 8  # bytes of a number on a connection
# What is loaded before writers are forked; a server's writer can do without the second one, which takes as long.
_NEEDED, _NEEDED_FOR_DATABASES = ["polyshot.tracking.replay"], "mlflow.store.tracking.sqlalchemy_store"


# --- the producer's side ---------------------------------------------------------------------------------------------


class Writer:
    """A writer process, as its producer sees it. It ends when its spool is written and nobody listens any more."""

    def __init__(self, connection: socket.socket):
        """Called by `start_writer`."""
        self._connection = connection  # ends with either of the two processes
        self._process: int | None = None  # its number, which it says when it begins

    @property
    def has_ended(self) -> bool:
        while select.select([self._connection], [], [], 0)[0]:
            message = self._received()
            if not message:
                return True
            self._process = int.from_bytes(message)
        return False

    def release(self) -> None:
        """Tell it that its spool is complete."""
        self._connection.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it, unless it has not begun yet: then it will only write what its spool still holds, if anything."""
        if not self.has_ended and self._process is not None:
            os.kill(self._process, signal.SIGKILL)
            while self._received():
                pass
        self._connection.close()

    def _received(self) -> bytes:
        try:
            return self._connection.recv(_NUMBER)
        except ConnectionError:  # it ended before it had read what it was sent
            return b""


def start_writer(spool: Path, store: Store, log: IO[bytes]) -> Writer:
    """Start a writer for `spool`, whose errors go to `log`; it begins once MLflow is loaded, and nobody waits for that.

    Raises:
        OSError: when the process cannot be started.
        TrackingError: when the current folder is gone, where relative paths of MLflow's settings would start.
    """
    job = {
        "spool": str(spool),
        "store": asdict(store) | {"artifacts": str(store.artifacts)},
        "folder": _current_folder(),
        "environment": dict(os.environ),
    }
    ours, theirs = socket.socketpair()
    with theirs:
        _Launcher.here(store, log).fork(theirs, log)
    # The store's address goes by the connection: arguments are seen by every user of the machine.
    message = json.dumps(job).encode()
    ours.sendall(len(message).to_bytes(_NUMBER) + message)
    return Writer(ours)


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        raise TrackingError(
            "the folder in which this command was started is gone (deleted, or a job's that its node cleared away); "
            "give the same command again from a folder that stays, or submit the job again"
        ) from None


class _Launcher:
    """The launcher of this Python process."""

    _running: ClassVar[dict[int, _Launcher]] = {}  # by process, since a forked one has none of its own

    def __init__(self, store: Store, log: IO[bytes]):
        modules = _NEEDED if store.is_server else [*_NEEDED, _NEEDED_FOR_DATABASES]
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "polyshot.tracking.launcher", *modules],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | IMPORT_SETTINGS,
                start_new_session=True,  # Ctrl-C in the terminal is not for it, nor for the writers
            )

    @classmethod
    def here(cls, store: Store, log: IO[bytes]) -> _Launcher:
        """The one that runs, or a new one."""
        running = cls._running.get(os.getpid())
        if running is None or running._process.poll() is not None:
            running = cls._running[os.getpid()] = cls(store, log)
        return running

    def fork(self, connection: socket.socket, log: IO[bytes]) -> None:
        socket.send_fds(self._connection, [b"."], [connection.fileno(), log.fileno()])


# --- the launcher's side ---------------------------------------------------------------------------------------------


def main() -> None:
    """Fork a writer for each connection that arrives, until the producer, at the other end of standard input, ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who stops a whole tree of processes means the producer
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # what is loaded is shared by all writers, and stays so
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a writer ended
    requests = socket.socket(fileno=os.dup(0))
    while files := socket.recv_fds(requests, 1, 2)[1]:
        if os.fork() == 0:
            requests.close()
            _become_writer(*files)
        for file in files:
            os.close(file)


def _become_writer(connection: int, log: int) -> None:
    """Serve the producer at the other end of `connection`, which becomes standard input; does not return."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for file, place in ((connection, 0), (log, 2)):
            os.dup2(file, place)
            os.close(file)
        with socket.socket(fileno=os.dup(0)) as producer:
            job = json.loads(_read(producer, int.from_bytes(_read(producer, _NUMBER))))
            with suppress(ConnectionError):  # who has died has left a spool all the same
                producer.sendall(os.getpid().to_bytes(_NUMBER))
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        store = job["store"]
        status = write(Path(job["spool"]), Store(**store | {"artifacts": Path(store["artifacts"])}))
    finally:
        os._exit(status)  # MLflow takes long to leave


def _read(connection: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = connection.recv(length - len(content))
        if not part:
            raise ConnectionResetError
        content += part
    return content


if __name__ == "__main__":
    main()
