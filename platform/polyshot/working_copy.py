"""Storage in an object store: ordinary files below one folder of each node, and what goes between them and the store.

A file of a working copy stands for the object of the same name. Callers say what they have written (`push`) and what
they are about to read (`pull`, `has`); of a file outside a working copy nothing needs to be carried, and nothing is
done. Uploads are a thread's, in the order in which they were asked for, and are tried again as long as the process
lives: training never waits for the store.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from polyshot.errors import ResourceError

log = logging.getLogger(__name__)

FOLDER = "POLYSHOT_WORKING_COPY"  # the environment variable that names another folder for working copies
_DEFAULT = "~/.cache/polyshot"
_ROOT = "polyshot-object-stores"  # in that folder; by this name a path of another node is known
_NOTES = ".carried"  # and in it, of each file that was carried, what it was then
# A node's own affair, what is being written, and what is pushed by who writes it and pulled by who needs it.
_LEFT_OUT = (
    *("lock", "*.lock", ".*", "*.partial-*", "*.previous", "checkpoint.pt", "stop"),
    *("ray-train", "polyshot-tune-*"),
)
_ASKING_SECONDS = 60.0  # for what a store answers without any file being carried
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a failed upload is tried again
_SETTLING_SECONDS = 60.0  # that the end of a run waits for a store which does not take what it is given

Answer = TypeVar("Answer")


# --- places ----------------------------------------------------------------------------------------------------------


def folder_of(storage: str | Path) -> Path:
    """The folder of a storage on this node: itself, or the working copy of an address."""
    scheme, mark, place = str(storage).partition("://")
    return _root().joinpath(scheme, *place.strip("/").split("/")) if mark else Path(storage)


def address_of(path: Path) -> str | None:
    """What a file or folder of a working copy stands for; None for any other."""
    path, root = path.absolute(), _root()
    if not path.is_relative_to(root) or len(path.relative_to(root).parts) < 2:
        return None
    scheme, *parts = path.relative_to(root).parts
    return f"{scheme}://{'/'.join(parts)}"


def here(path: Path) -> Path:
    """The place on this node of what another one has at `path`: working copies may be in other folders there."""
    return _root().joinpath(*path.parts[path.parts.index(_ROOT) + 1 :]) if _ROOT in path.parts else path


def _root() -> Path:
    return Path(os.environ.get(FOLDER) or _DEFAULT).expanduser().resolve() / _ROOT


# --- reading ---------------------------------------------------------------------------------------------------------


def check(folder: Path) -> None:
    """See that the store of a working copy can be read and written.

    Raises:
        ResourceError: when it cannot: no such bucket, no credentials, no answer, a missing package.
    """
    if address_of(folder) is None:
        return

    def write() -> None:
        system, remote = _object(folder / f".polyshot-{os.getpid()}")
        system.pipe_file(remote, b"")
        system.rm_file(remote)

    _asked(folder, write)


def names(folder: Path) -> set[str]:
    """The names of what is in a folder, here or in the store. Raises as `check`."""
    own = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if address_of(folder) is None:
        return own

    def listed() -> list[str]:
        system, remote = _object(folder)
        with suppress(FileNotFoundError):  # a folder is there as long as something is in it
            return system.ls(remote, detail=False)
        return []

    return own | {name.rstrip("/").rpartition("/")[2] for name in _asked(folder, listed)}


def pull(path: Path, *, over: bool = False) -> None:
    """Bring a file here as the store has it, if it has; what is gone there is gone here.

    Args:
        over: also over a change that was made here and never reached the store, for who is the only one to write it.

    Raises:
        ResourceError: as `check`.
    """
    if address_of(path) is None:
        return

    def found() -> dict[str, Any] | None:
        system, remote = _object(path)
        with suppress(FileNotFoundError):
            info = system.info(remote)
            return info if info["type"] == "file" else None
        return None

    info = _asked(path, found)
    if info is not None:
        _carried_here(path, info, over)
    elif (carried := _Carried.of(path)) is not None and carried.is_still(path):
        path.unlink()
        carried.forget(path)


def pull_folder(folder: Path, *patterns: str, over: bool = False) -> None:
    """Bring a run's or a study's folder here: all but checkpoints, or only the files that match one of `patterns`.

    Args and errors as of `pull`.
    """
    if address_of(folder) is None:
        return

    def found() -> dict[str, dict[str, Any]]:
        system, remote = _object(folder)
        start = f"{remote.rstrip('/')}/"
        infos: Mapping[str, dict[str, Any]] = system.find(remote, detail=True)
        return {name.removeprefix(start): info for name, info in infos.items() if name.startswith(start)}

    for name, info in _asked(folder, found).items():
        wanted = any(fnmatch.fnmatch(name, pattern) for pattern in patterns) if patterns else not _is_left_out(name)
        if wanted and ".." not in name.split("/"):  # an object may be called anything
            _carried_here(folder / name, info, over)


def has(path: Path, *, over: bool = True) -> bool:
    """Whether there is such a file, brought here if the store has it; where that cannot be told, whether it is here.

    Args:
        over: as of `pull`.
    """
    try:
        pull(path, over=over)
    except ResourceError as error:
        log.warning("%s", error)
    return path.exists()


def _carried_here(path: Path, info: Mapping[str, Any], over: bool) -> None:
    carried, version = _Carried.of(path), _version(info)
    if path.exists() and carried is not None and (carried.version == version or not (over or carried.is_still(path))):
        return
    if path.exists() and carried is None and not over:
        return
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}")

    def fetch() -> None:
        system, remote = _object(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            system.get_file(remote, str(partial))
            stat = partial.stat()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _Carried(stat.st_size, stat.st_mtime_ns, version).keep(path)

    _asked(path, fetch, seconds=None)


# --- writing ---------------------------------------------------------------------------------------------------------


def push(path: Path) -> None:
    """Have a file sent to the store, or what has changed in a folder; it is on its way when this returns."""
    if address_of(path) is not None:
        _CARRIER.ask(path, "push")


def look(path: Path) -> None:
    """Have a file brought here soon, without waiting for it: `pull` by the thread."""
    if address_of(path) is not None:
        _CARRIER.ask(path, "pull")


def remove(path: Path) -> None:
    """Delete a file or a folder, here and in the store."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if address_of(path) is not None:
        _CARRIER.ask(path, "remove")


def release(folder: Path) -> None:
    """Delete the files here that the store has, once what was asked for before is done."""
    if address_of(folder) is not None:
        _CARRIER.ask(folder, "release")


def settle() -> str | None:
    """Wait until the store has all, or has failed for a minute; says what it has not, and why."""
    return _CARRIER.settle(_SETTLING_SECONDS)


class _Carrier:
    """The thread that writes to stores: first what was asked for first, a file asked for again at its last place.

    So what names another file (a journal, a state) is never there before it.
    """

    def __init__(self) -> None:
        self.forget()
        os.register_at_fork(after_in_child=self.forget)  # what waits is the parent's to send

    def forget(self) -> None:
        self._waiting: dict[tuple[Path, str], object] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._fault = ""  # of the last attempt

    def ask(self, path: Path, what: Literal["push", "pull", "remove", "release"]) -> None:
        with self._changed:
            if what == "remove":  # it is there no more
                for key in [key for key in self._waiting if key[0].is_relative_to(path)]:
                    del self._waiting[key]
            self._waiting.pop((path, what), None)
            self._waiting[path, what] = object()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="working-copy", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def settle(self, seconds: float) -> str | None:
        deadline = time.monotonic() + seconds
        with self._changed:
            self._changed.notify_all()  # what has failed is tried again at once
            while self._waiting and not (self._fault and time.monotonic() >= deadline):
                self._changed.wait(0.5)
            if not self._waiting:
                return None
            places = [address_of(path) for path, _ in self._waiting]
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            return (
                f"storage: {places[0]}{more} could not be brought up to date ({self._fault}); "
                "it is kept on this machine, and the same command here sends it"
            )

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                key, token = next(iter(self._waiting.items()))
            try:
                _DO[key[1]](key[0])
            except Exception as error:  # noqa: BLE001 - every store has errors of its own
                self._fault = _reason(error)
                log.warning("%s: %s", address_of(key[0]), self._fault)
                with self._changed:
                    self._changed.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause, self._fault = _FIRST_PAUSE, ""
            with self._changed:
                if self._waiting.get(key) is token:
                    del self._waiting[key]
                self._changed.notify_all()


_CARRIER = _Carrier()


def _push(path: Path) -> None:
    for file in _files(path) if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # deleted since: who deletes says so
            _push_file(file)


def _push_file(path: Path) -> None:
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        carried = _Carried.of(path)
        if carried is not None and carried.is_like(stat):
            return
        content = file.read()
    system, remote = _object(path)
    try:
        system.pipe_file(remote, content)
        version = _version(system.info(remote))
    except FileNotFoundError as error:  # of the store, and not of the disk
        raise ResourceError(f"no such bucket: {_reason(error)}") from error
    _Carried(len(content), stat.st_mtime_ns, version).keep(path)


def _remove(path: Path) -> None:
    system, remote = _object(path)
    with suppress(FileNotFoundError):
        system.rm(remote, recursive=True)
    shutil.rmtree(_note(path).with_suffix(""), ignore_errors=True)
    _note(path).unlink(missing_ok=True)


def _release(folder: Path) -> None:
    for file in folder.rglob("*"):
        carried = _Carried.of(file)
        if carried is not None and carried.is_still(file):
            file.unlink(missing_ok=True)
            file.with_name(f"{file.name}.previous").unlink(missing_ok=True)  # of a checkpoint, its reserve
            carried.forget(file)


_DO: dict[str, Callable[[Path], None]] = {"push": _push, "pull": pull, "remove": _remove, "release": _release}


def _files(folder: Path) -> Iterable[Path]:
    """The files of a run's folder that go along, in the order in which they were written."""

    def found() -> Iterator[tuple[int, Path]]:
        for path in folder.rglob("*"):
            if not _is_left_out(path.relative_to(folder).as_posix()):
                with suppress(FileNotFoundError):
                    if path.is_file():
                        yield path.stat().st_mtime_ns, path

    return [path for _, path in sorted(found())]


def _is_left_out(name: str) -> bool:
    return any(fnmatch.fnmatch(part, pattern) for part in name.split("/") for pattern in _LEFT_OUT)


# --- what was carried ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Carried:
    """A file here and its object when they were last the same: the size and time of one, the version of the other."""

    size: int
    time: int
    version: str

    @classmethod
    def of(cls, path: Path) -> _Carried | None:
        try:
            return cls(**json.loads(_note(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def is_like(self, stat: os.stat_result) -> bool:
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.time)

    def is_still(self, path: Path) -> bool:
        try:
            return self.is_like(path.stat())
        except FileNotFoundError:
            return False

    def keep(self, path: Path) -> None:
        note = _note(path)
        partial = note.with_name(f"{note.name}.partial-{os.getpid()}-{threading.get_ident()}")
        note.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(note)

    def forget(self, path: Path) -> None:
        _note(path).unlink(missing_ok=True)


def _note(path: Path) -> Path:
    root = _root()
    return root / _NOTES / f"{path.absolute().relative_to(root)}.json"


def _version(info: Mapping[str, Any]) -> str:
    """Changes whenever the object does; an object of the same content may keep it."""
    marks = ("ETag", "etag", "md5Hash", "generation", "mtime", "last_modified", "LastModified", "modified", "created")
    mark = next((info[name] for name in marks if info.get(name)), "")
    return f"{info['size']} {mark}"


# --- the store -------------------------------------------------------------------------------------------------------


def _object(path: Path) -> tuple[Any, str]:
    """The file system of a store, and what `path` is called there."""
    address = address_of(path)
    assert address is not None
    scheme, _, place = address.partition("://")
    system = _system(os.getpid(), f"{scheme}://{place.partition('/')[0]}")
    return system, system._strip_protocol(address)


@cache
def _system(process: int, start: str) -> Any:  # noqa: ARG001 - connections are a process's own
    import fsspec

    return fsspec.url_to_fs(start, use_listings_cache=False, skip_instance_cache=True)[0]


def _asked(path: Path, ask: Callable[[], Answer], seconds: float | None = _ASKING_SECONDS) -> Answer:
    """What the store answers, within `seconds`.

    Raises:
        ResourceError: when it does not.
    """
    answers: list[Answer] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - as above
            faults.append(error)

    asking = threading.Thread(target=run, name="working-copy-asks", daemon=True)
    asking.start()
    asking.join(seconds)
    if answers:
        return answers[0]
    fault = faults[0] if faults else TimeoutError(f"no answer within {seconds:g} s")
    if isinstance(fault, ImportError):
        package = str(fault).partition("nstall ")[2].partition(" ")[0]
        mend = f"needs another package ({_reason(fault)}); `pip install {package or 'it'}`"
    else:
        mend = (
            f"cannot be used ({_reason(fault)}); see that the bucket is there, and that the credentials in the "
            "environment, or in the store's own files, allow to read and write it"
        )
    raise ResourceError(f"storage: {address_of(path)} {mend}") from fault


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
