"""Tracking with the real MLflow: what is emitted arrives once, whatever dies, hangs or comes back in between."""

import http.server
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from polyshot.errors import TrackingError
from polyshot.study import Study
from polyshot.tracking import spool as files
from polyshot.tracking.query import runs_table
from polyshot.tracking.store import resolve, without_credentials
from polyshot.tracking.sync import sync
from polyshot.tracking.tracker import Run, Tracker
from polyshot.tracking.ui import serve_ui

pytestmark = pytest.mark.timeout(420)  # on a busy machine, each MLflow process takes its time to start
CANARY = "kanarienvogel"
PATIENCE = 180.0  # of tests on a busy machine


def study_in(storage: Path, name: str = "probe", **sections: object) -> Study:
    return Study.from_dict(
        {
            "name": name,
            "storage": str(storage),
            "data": {"source": "none.csv"},
            "tasks": {"a": {"kind": "regression"}},
            **sections,
        }
    )


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, metric)]


def until(condition, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def waiting_spools(study: Study) -> list[Path]:
    return list((study.storage_folder / "spool").glob("*/[!.]*.jsonl"))


# --- addresses -------------------------------------------------------------------------------------------------------


def test_the_study_s_address_goes_before_the_environment_s_before_the_storage_folder_s(tmp_path, monkeypatch):
    assert resolve(study_in(tmp_path)).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:1")
    assert resolve(study_in(tmp_path)).origin == "MLFLOW_TRACKING_URI"
    named = resolve(study_in(tmp_path, tracking={"uri": "sqlite:///x.db", "experiment": "e"}))
    assert (named.uri, named.origin, named.experiment) == (f"sqlite:///{Path.cwd()}/x.db", "tracking.uri", "e")


def test_credentials_are_blotted_out_of_every_address_in_a_text_and_nothing_else_is():
    text = 'uri: http://me:secret@host:5000/x\n{"a": "postgresql+psycopg://me@db/x", "mail": "me@host"}'
    assert without_credentials(text) == (
        'uri: http://***@host:5000/x\n{"a": "postgresql+psycopg://***@db/x", "mail": "me@host"}'
    )


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:1", "cannot be reached"),
        (f"http://me:{CANARY}@127.0.0.1:{{deaf}}", "does not answer within 3 s"),
        (f"postgresql://me:{CANARY}@127.0.0.1:1/mlflow", "the database at postgresql://***@127.0.0.1:1/mlflow"),
        (f"postgresql+pg9://me:{CANARY}@127.0.0.1:1/mlflow", "127.0.0.1:1/mlflow needs the package 'pg9'"),
        ("htp://127.0.0.1:5000", "is no address of an MLflow store"),
        ("mlruns", "is no address of an MLflow store"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///{tmp}/note.txt", "is not a SQLite database"),
        ("sqlite:///{tmp}/note.txt/mlflow.db", "cannot be"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_at_once_and_leaves_nothing_behind(uri, words, tmp_path, deaf_port):
    (tmp_path / "note.txt").write_text("not a database, whatever its name says")
    uri = uri.format(deaf=deaf_port, tmp=tmp_path)
    started = time.monotonic()
    with pytest.raises(TrackingError, match="^tracking.uri: ") as fault:
        Tracker.open(study_in(tmp_path / "storage", tracking={"uri": uri}))
    assert time.monotonic() - started < 5
    assert words in str(fault.value) and CANARY not in str(fault.value)
    assert not (tmp_path / "storage").exists()


def test_a_folder_that_is_gone_is_said(tmp_path, monkeypatch):
    study = study_in(tmp_path / "storage")
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    (tmp_path / "job").rmdir()
    with pytest.raises(TrackingError, match="^the folder in which this command was started is gone"):
        Tracker.open(study)


def test_opening_and_logging_loads_nothing_heavy(tmp_path):
    script = (
        "import sys; from polyshot.study import Study; from polyshot.tracking.tracker import Tracker\n"
        "assert not {'mlflow', 'pandas', 'torch', 'ray', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


# --- the spool -------------------------------------------------------------------------------------------------------


def test_a_torn_line_waits_a_broken_one_is_passed_over_and_the_rest_is_read(tmp_path):
    spool = tmp_path / "1.jsonl"
    spool.write_bytes(b'{"a":1}\n{"b\n{"c":3}\n{"d"')
    events, end = files.read_events(spool, 0, 1000)
    assert [event for _, event in events] == [{"a": 1}, None, {"c": 3}]
    with spool.open("ab") as file:
        file.write(b":4}\n")
    assert files.read_events(spool, end, 1000)[0] == [(end, {"d": 4})]


def test_a_spool_is_live_exactly_as_long_as_its_producer_holds_it(tmp_path):
    spool = files.Spool(tmp_path)
    assert files.is_live(spool.path)
    spool.close()
    assert not files.is_live(spool.path) and files.spools(tmp_path) == [spool.path]


# --- a SQLite store --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Study, Tracker, Run, Run]:
    """A study with a parent run and a child, recorded twice: the second time is a resumption."""
    place = tmp_path_factory.mktemp("sqlite")
    study = study_in(place / "storage")
    model = place / "model"
    model.mkdir()
    (model / "weights.bin").write_bytes(b"\x00\x01")
    schema = json.dumps([{"type": "double", "name": "x", "required": True}])
    (model / "signature.json").write_text(json.dumps({"inputs": schema, "outputs": schema, "params": None}))
    (model / "input_example.json").write_text(json.dumps({"columns": ["x"], "data": [[1.0], [2.0]]}))

    tracker = Tracker.open(study)
    parent = tracker.start_run(
        "search-1", "search-1", params={"depth": 1, "long": "x" * 9000}, tags={"polyshot.kind": "search"}
    )
    child = tracker.start_run("trial", "search-1/trial-0", parent, {"depth": 2}, {"polyshot.kind": "trial"})
    for step in range(1, 6):
        child.log_metrics({"loss": 1 / step, "odd": math.nan}, step=step)
    child.log_metrics({"val/a/rmse": 0.5, "high": math.inf, "a name with a *": 1.0})
    child.log_params({"depth": 3, "uri": f"http://me:{CANARY}@host"})  # a parameter keeps its first value
    note = place / "note.txt"
    note.write_text("first")
    child.log_artifact(note, "notes")
    note.unlink()  # long before a server may have it
    child.log_text(f"uri: http://me:{CANARY}@host", "study.yaml")
    child.log_artifact(model)
    child.log_model(model)
    child.end()
    outcome = tracker.close(PATIENCE)
    assert outcome is not None and (outcome.kept, outcome.rejected) == (0, 2), outcome

    with Tracker.open(study) as again:
        parent = again.start_run("search-1", "search-1")
        child = again.start_run("trial", "search-1/trial-0", parent)
        for step in range(4, 8):  # from its last checkpoint on
            child.log_metrics({"loss": 1 / step}, step=step)
        child.end("FAILED")
        again.close(PATIENCE)
    return study, again, parent, child


def test_a_key_is_one_run_however_often_it_is_started_and_the_tree_is_kept(recorded):
    study, tracker, parent, child = recorded
    table = runs_table(study)
    assert list(table["run"]) == ["search-1", "trial"]
    assert list(table["kind"]) == ["search", "trial"]
    assert list(table["parent"]) == ["", "search-1"]
    assert list(table["depth"]) == [1, 2]
    assert list(table.index) == [tracker.mlflow_id(parent), tracker.mlflow_id(child)]


def test_a_run_that_nobody_ended_is_marked_as_killed(recorded):
    assert list(runs_table(recorded[0])["status"]) == ["KILLED", "FAILED"]


def test_points_arrive_once_and_a_resumed_run_does_not_repeat_its_steps(recorded):
    study, tracker, _, child = recorded
    uri, run_id = resolve(study).uri, tracker.mlflow_id(child)
    assert history(uri, run_id, "loss") == [(step, 1 / step) for step in range(1, 8)]
    assert [step for step, value in history(uri, run_id, "odd") if math.isnan(value)] == [1, 2, 3, 4, 5]
    row = runs_table(study).loc[run_id]
    assert row["val/a/rmse"] == 0.5 and row["high"] == math.inf
    assert "a name with a *" not in row


def test_long_values_are_cut_with_a_word(recorded):
    from mlflow.tracking import MlflowClient

    study, tracker, parent, _ = recorded
    long = MlflowClient(resolve(study).uri).get_run(tracker.mlflow_id(parent)).data.params["long"]
    assert len(long) == 6000 and long.endswith("x … (cut)")


def test_artifacts_and_the_model_stand_on_the_run(recorded):
    import yaml
    from mlflow.tracking import MlflowClient

    study, tracker, _, child = recorded
    client, run_id = MlflowClient(resolve(study).uri), tracker.mlflow_id(child)
    run = client.get_run(run_id)
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(Path(study.storage) / "mlartifacts")
    assert (artifacts / "notes" / "note.txt").read_text() == "first"
    assert (artifacts / "model" / "weights.bin").exists()
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    folder = Path(logged.artifact_location.removeprefix("file://"))
    description = yaml.safe_load((folder / "MLmodel").read_text())
    assert str(logged.status) == "READY" and logged.source_run_id == run_id
    assert description["flavors"]["python_function"]["loader_module"] == "polyshot.saved_model"
    assert json.loads(description["signature"]["inputs"])[0]["name"] == "x"
    assert description["saved_input_example_info"]["artifact_path"]
    # The current folder is this repository, which has both.
    assert not {"uv.lock", "pyproject.toml"} & {file.name for file in folder.iterdir()}


def test_no_credentials_reach_the_disk_and_no_spool_is_left(recorded):
    study = recorded[0]
    everything = [file for file in Path(study.storage).rglob("*") if file.is_file()]
    assert any(file.name == "study.yaml" for file in everything)
    assert not [file for file in everything if CANARY.encode() in file.read_bytes()]
    assert waiting_spools(study) == [] and not list((study.storage_folder / "spool").rglob("*.files"))


# --- several producers, and dead ones --------------------------------------------------------------------------------

PRODUCER = """
import os, signal, sys, time
from polyshot.study import Study
from polyshot.tracking.tracker import Tracker
storage, study, key, fate = sys.argv[1:]
values = {"name": study, "storage": storage, "data": {"source": "x.csv"}, "tasks": {"a": {"kind": "regression"}}}
study = Study.from_dict(values)
tracker = Tracker.open(study)
run = tracker.start_run(key, key)
for step in range(1, 301):
    run.log_metrics({"loss": 1 / step}, step=step)
if fate == "hangs":
    print("ready", flush=True)
    time.sleep(600)
if fate == "loses its writer":
    while tracker._writer.has_ended or not tracker._writer._process:
        time.sleep(0.05)
    os.kill(tracker._writer._process, signal.SIGKILL)
run.end()
assert tracker.close(180) is None
"""


@pytest.mark.slow
def test_processes_that_start_on_one_new_store_at_once_all_arrive_even_one_that_is_killed(tmp_path):
    def producer(study: str, key: str, fate: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PRODUCER, str(tmp_path), study, key, fate]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    doomed, *others = [
        producer("one", "a", "hangs"), producer("one", "b", "ends"), producer("two", "c", "loses its writer"),
    ]  # fmt: skip
    assert doomed.stdout.readline() == b"ready\n"
    doomed.send_signal(signal.SIGKILL)
    assert [process.wait(PATIENCE) for process in others] == [0, 0]
    one, two = study_in(tmp_path, "one"), study_in(tmp_path, "two")
    until(lambda: not waiting_spools(one))
    states = {
        row["run"]: (row["status"], run_id) for study in (one, two) for run_id, row in runs_table(study).iterrows()
    }
    assert {name: status for name, (status, _) in states.items()} == {"a": "KILLED", "b": "FINISHED", "c": "FINISHED"}
    for _, run_id in states.values():
        assert [step for step, _ in history(resolve(one).uri, run_id, "loss")] == list(range(1, 301))


# --- a server --------------------------------------------------------------------------------------------------------


class Server:
    """The MLflow server that `polyshot ui` becomes, over a storage folder that has a store."""

    def __init__(self, storage: Path):
        self.storage = storage
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        call = "import sys, pathlib as p, polyshot.tracking.ui as u; u.serve_ui(p.Path(sys.argv[1]), int(sys.argv[2]))"
        command = [sys.executable, "-c", call, str(self.storage), str(self.port)]
        with (self.storage / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until(self._answers)

    def _answers(self) -> bool:
        import requests

        assert self.process.poll() is None, (self.storage / "server.log").read_text()
        try:
            return requests.get(f"{self.address}/health", timeout=1).ok
        except requests.RequestException:
            return False

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(recorded) -> Iterator[Server]:
    server = Server(Path(recorded[0].storage))
    yield server
    server.kill()


@pytest.mark.slow
def test_the_ui_listens_on_loopback_only(server):
    tree = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    listening = [own.laddr for each in tree for own in each.net_connections("inet") if own.status == psutil.CONN_LISTEN]
    assert server.port in [address.port for address in listening]
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_has_every_point_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("//", f"//me:{CANARY}@"))
    study = study_in(tmp_path, "away")
    tracker = Tracker.open(study)
    run = tracker.start_run("train-1", "train-1")
    run.log_text("kept", "notes/a.txt")
    run.log_metrics({"loss": 1.0}, step=1)
    until(lambda: tracker.mlflow_id(run) is not None)
    stop = threading.Event()

    def emit() -> None:
        for step in range(2, 2000):
            run.log_metrics({"loss": 1 / step}, step=step)
            last.append(step)
            if stop.wait(0.01):
                return

    last: list[int] = []
    emitter = threading.Thread(target=emit)
    emitter.start()
    time.sleep(1.5)
    server.kill()
    until(lambda: "does not take them" in files.State.load(tracker._folder).trouble)
    server.start()
    stop.set()
    emitter.join()
    run.end()
    assert tracker.close(PATIENCE) is None
    table = runs_table(study)
    assert list(table["status"]) == ["FINISHED"]
    assert (
        tracker.link(run)
        == f"{server.address}/#/experiments/{files.State.load(tracker._folder).experiment_id}/runs/{table.index[0]}"
    )
    assert [step for step, _ in history(server.address, table.index[0], "loss")] == list(range(1, last[-1] + 1))
    kept = [file for file in [*tmp_path.rglob("*"), *server.storage.rglob("*")] if file.is_file()]
    assert not [file for file in kept if CANARY.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_server_that_hangs_slows_nothing_and_what_is_kept_is_sent_once_by_sync(server, tmp_path):
    study = study_in(tmp_path, "hung", tracking={"uri": server.address})
    tracker = Tracker.open(study)
    first = tracker.start_run("first", "first")
    first.end()
    until(lambda: tracker.mlflow_id(first) is not None)
    server.signal(signal.SIGSTOP)  # a request to create the next run will be carried out when nobody waits for it
    try:
        run = tracker.start_run("train-1", "train-1")
        started = time.perf_counter()
        for step in range(1, 1001):
            run.log_metrics({"loss": 1 / step}, step=step)
        seconds_per_event = (time.perf_counter() - started) / 1000
        run.end()
        started = time.monotonic()
        outcome = tracker.close(patience_seconds=20)  # enough for the writer to have asked and to be let down
        assert time.monotonic() - started < 21
    finally:
        server.signal(signal.SIGCONT)
    assert seconds_per_event < 1e-3
    assert outcome is not None
    assert outcome.kept == 1002
    assert "polyshot sync" in str(outcome)
    synced = sync(study)
    assert (synced.sent, synced.rejected, waiting_spools(study)) == (1002, 0, [])
    table = runs_table(study)
    assert sorted(table["run"]) == ["first", "train-1"]
    run_id = table.index[table["run"] == "train-1"][0]
    assert [step for step, _ in history(server.address, run_id, "loss")] == list(range(1, 1001))


class Faulty(http.server.ThreadingHTTPServer):
    """Stands before a server, and answers 500 to the first request at all, which it has not passed on, and to the first
    that creates a run, that updates one and that brings metrics, which it has."""

    FAULTS = ("any", "create", "update", "metrics")

    def __init__(self, behind: str):
        super().__init__(("127.0.0.1", 0), _PassOn)
        self.behind = behind
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.faults = list(self.FAULTS)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self, path: str, body: bytes) -> str | None:
        """The fault that this request meets, if any."""
        kind = "metrics" if path.endswith("/log-batch") and b'"metrics"' in body else path.rpartition("/")[2]
        if "any" in self.faults and kind != "health":
            kind = "any"
        if kind not in self.faults:
            return None
        self.faults.remove(kind)
        return kind


class _PassOn(http.server.BaseHTTPRequestHandler):
    server: Faulty

    def answer(self) -> None:
        import requests

        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        status, content = 500, b"Internal Server Error"
        fault = self.server.fault(self.path, body)
        if fault != "any":
            passed = requests.request(
                self.command, self.server.behind + self.path, data=body, headers=headers, timeout=60
            )
            if fault is None:
                status, content = passed.status_code, passed.content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - the names that the library looks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_server_that_answers_500_has_every_point_once_when_it_is_well_again(server, tmp_path):
    front = Faulty(server.address)
    try:
        study = study_in(tmp_path, "faulty", tracking={"uri": front.address})
        tracker = Tracker.open(study)
        first = tracker.start_run("train-1", "train-1")
        first.end()
        until(lambda: "500" in files.State.load(tracker._folder).trouble)
        until(lambda: tracker.mlflow_id(first) is not None)
        run = tracker.start_run("train-2", "train-2")
        until(lambda: tracker.mlflow_id(run) is not None)
        for step in range(1, 501):
            run.log_metrics({"loss": 1 / step}, step=step)
        run.end()
        assert tracker.close(PATIENCE) is None
        assert front.faults == []
        table = runs_table(study).set_index("run")
        assert list(table["status"].sort_index().items()) == [("train-1", "FINISHED"), ("train-2", "FINISHED")]
        assert [step for step, _ in history(server.address, tracker.mlflow_id(run), "loss")] == list(range(1, 501))
    finally:
        front.shutdown()
        front.server_close()


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_table_of_no_runs_says_what_to_do_and_makes_no_store(tmp_path):
    with pytest.raises(TrackingError, match="run `polyshot train` first"):
        runs_table(study_in(tmp_path))
    with pytest.raises(TrackingError, match="run `polyshot train` first"):
        serve_ui(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_without_runs_is_named(recorded):
    study = recorded[0].with_values({"tracking.experiment": "another"})
    with pytest.raises(TrackingError, match="no runs of experiment 'another'"):
        runs_table(study)


def test_the_table_has_the_runs_of_all_pages(recorded, monkeypatch):
    monkeypatch.setattr("polyshot.tracking.query.PAGE", 1)
    assert len(runs_table(recorded[0])) == 2


def test_a_port_that_is_taken_is_named(recorded, deaf_port):
    with pytest.raises(TrackingError, match=f"127.0.0.1:{deaf_port} cannot be listened on"):
        serve_ui(recorded[0], deaf_port)


def test_a_run_s_places_and_keys_stay_inside():
    with pytest.raises(ValueError, match="a run's key"):
        Tracker.start_run(object.__new__(Tracker), "x", "it's")
    with pytest.raises(ValueError, match="within its run's artifacts"):
        Run(object.__new__(Tracker), "x", "x").log_text("x", "../x.txt")
