"""An object store on loopback (moto's server, to which s3fs speaks as to S3), and the machines that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from polyshot import working_copy
from polyshot.progress import Progress

WHY_NOT = "is not installed, and these tests are with an object store"


class Server:
    """The store, which can be away for a while."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    def start(self) -> None:
        moto = pytest.importorskip("moto.server", reason=f"moto {WHY_NOT}")
        self._server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """In which whoever asks for S3 finds it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class Bucket:
    """A bucket, and the machines that use it, of which each has a disk of its own."""

    def __init__(self, name: str, machines: Path, patch: pytest.MonkeyPatch):
        self.name, self.storage = name, f"s3://{name}/runs"
        self._machines, self._patch = machines, patch
        self._system = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        self._system.mkdir(name)

    def on(self, machine: str) -> Path:
        """Go to a machine; its folder of the storage."""
        self._patch.setenv(working_copy.FOLDER, str(self._machines / machine))
        return working_copy.folder_of(self.storage)

    def has(self, name: str) -> bool:
        return self._system.exists(f"{self.name}/runs/{name}")

    def read(self, name: str) -> bytes:
        return self._system.cat_file(f"{self.name}/runs/{name}")

    def names(self, folder: str) -> set[str]:
        return {Path(name).name for name in self._system.ls(f"{self.name}/runs/{folder}")}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("s3fs", reason=f"s3fs {WHY_NOT}")
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def bucket(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Bucket:  # noqa: ARG001
    bucket = Bucket(f"bucket-{abs(hash(request.node.name)) % 10**9}", tmp_path / "machines", monkeypatch)
    bucket.on("one")
    return bucket


class Steps(Progress):
    """Remembers how far an activity was each time that it was told, and does something when it is at one of them."""

    def __init__(self, activity: str, at: int | None = None, do: Callable[[], object] = lambda: None):
        self._activity, self._at, self._do = activity, at, do
        self.seen: list[int] = []
        self.notes: list[str] = []

    def advance(self, activity: str, completed: int, words: str = "") -> None:  # noqa: ARG002
        if activity == self._activity:
            self.seen.append(completed)
            if completed == self._at:
                self._do()

    def note(self, text: str) -> None:
        self.notes.append(text)


def interrupt() -> None:
    """Press Ctrl-C."""
    raise KeyboardInterrupt
