"""Tracking into a real PostgreSQL: several writers at once on a database that has no tables yet."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyshot.study import Study
from polyshot.tracking.query import runs_table

pytestmark = [pytest.mark.timeout(420), pytest.mark.slow]
CANARY = "kanarienvogel"

PRODUCER = """
import sys
from polyshot.study import Study
from polyshot.tracking.tracker import Tracker
storage, study, key = sys.argv[1:]
values = {"name": study, "storage": storage, "data": {"source": "x.csv"}, "tasks": {"a": {"kind": "regression"}}}
tracker = Tracker.open(Study.from_dict(values))
run = tracker.start_run(key, key, params={"depth": 1})
for step in range(1, 301):
    run.log_metrics({"loss": 1 / step, "rate": 0.1}, step=step)
run.end()
outcome = tracker.close(240)
assert outcome is None, outcome
"""


def programs() -> Path:
    """The folder of the server's programs, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not places or not (places[-1] / "initdb").exists():
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    return places[-1]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[str]:
    """The address of an empty database on loopback, with a password."""
    pytest.importorskip("psycopg", reason="the extra 'postgresql' is not installed")
    place = tmp_path_factory.mktemp("postgresql")
    (place / "password").write_text(CANARY)
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to be root
    if user is not None:
        shutil.chown(place, user)
        for folder in place.parents:
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server_programs, data = programs(), place / "data"
    initialise = [
        server_programs / "initdb",
        "-D",
        data,
        "-U",
        "mlflow",
        "-A",
        "scram-sha-256",
        f"--pwfile={place}/password",
    ]
    subprocess.run(initialise, check=True, user=user, stdout=subprocess.DEVNULL, cwd=place)
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={place}", "-c", "fsync=off"]
    with (tmp_path_factory.mktemp("log") / "server.log").open("wb") as log:
        command = [server_programs / "postgres", "-D", data, "-p", str(port), *options]
        server = subprocess.Popen(command, user=user, cwd=place, stdout=log, stderr=log)
    try:
        ready = [server_programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.1)
        yield f"postgresql://mlflow:{CANARY}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # "fast shutdown"
        server.wait(30)


def test_writers_that_start_at_once_on_an_empty_database_lose_and_double_nothing(database, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    keys = [("one", "a"), ("one", "b"), ("two", "c")]  # a writer for each experiment
    producers = [subprocess.Popen([sys.executable, "-c", PRODUCER, str(tmp_path), *key]) for key in keys]
    assert [producer.wait(300) for producer in producers] == [0, 0, 0]
    found = {}
    for name in ("one", "two"):
        study = Study.from_dict(
            {
                "name": name,
                "storage": str(tmp_path),
                "data": {"source": "x.csv"},
                "tasks": {"a": {"kind": "regression"}},
            }
        )
        found |= {row["run"]: (run_id, row["status"]) for run_id, row in runs_table(study).iterrows()}
    assert {name: status for name, (_, status) in found.items()} == dict.fromkeys("abc", "FINISHED")
    client = MlflowClient(database)
    for run_id, _ in found.values():
        for metric in ("loss", "rate"):
            assert [point.step for point in client.get_metric_history(run_id, metric)] == list(range(1, 301))
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not [file for file in written if CANARY.encode() in file.read_bytes()]
