"""Jobs: what is sent to a cluster, what is refused before, and how a real cluster's are followed and stopped."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import STUDY, learnable_table

from polyshot.cluster import upload
from polyshot.cluster.upload import collect, named_studies
from polyshot.errors import DataError, ResourceError, RunError, StudyError
from polyshot.study import Study
from polyshot.verbs.jobs import jobs
from polyshot.verbs.submit import submit

ROOT = Path(__file__).parents[1]
TOKEN, PASSWORD = "kanarienvogel-token-0123456789abcdef", "kanarienvogel-password"
MODULE = """\
import pathlib

import half


def rows():
    return half.table()
"""
HALF = """\
import pandas


def table():
    return pandas.DataFrame({"x": range(60), "price": [2 * x for x in range(60)], "sold": [x > 30 for x in range(60)]})
"""


def make(folder: Path, source: str = "houses.csv", **values: object) -> Path:
    """A study file beside its table and two modules, one of which imports the other."""
    learnable_table().to_csv(folder / "houses.csv", index=False)
    (folder / "mine.py").write_text(MODULE)
    (folder / "half.py").write_text(HALF)
    (folder / "other.py").write_text("raise RuntimeError('nobody names this module')")
    text = STUDY.replace("houses.csv", source) + f"storage: {folder}/runs\n"
    (folder / "study.yaml").write_text(text + "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return folder / "study.yaml"


def sent(file: Path, **options: bool) -> set[str]:
    """The places of all but Polyshot's own files."""
    study = Study.load(file)
    places = {str(place) for place in collect(study, file, named=named_studies(study), **options)}
    return {place for place in places if not place.startswith("polyshot/")}


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_the_modules_that_the_study_names_go_along_with_those_that_they_import(tmp_path):
    assert sent(make(tmp_path, "mine:rows")) == {"study.yaml", "mine.py", "half.py"}
    search = {"space": {"model.encoder.kind": {"choice": ["mlp", "half:table"]}}}
    assert sent(make(tmp_path, "/shared/houses.csv", search=search)) == {"study.yaml", "half.py"}


def test_polyshot_goes_along_as_its_wheel_has_it(tmp_path):
    file = make(tmp_path, "/shared/houses.csv")
    upload.write(collect(Study.load(file), file), tmp_path / "job")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = [path.parent.relative_to(tmp_path / "job") for path in (tmp_path / "job").rglob("__init__.py")]
    assert sorted(map(str, found)) == sorted(package.replace(".", "/") for package in settings["packages"])
    for package, patterns in settings["package-data"].items():
        for pattern in patterns:
            assert list((tmp_path / "job" / package.replace(".", "/")).glob(pattern))
    # Without the packages of this environment (-S); the current folder is first on the path, as it is for `-m`.
    command = [sys.executable, "-S", "-c", "import polyshot.meta; print(polyshot.meta.__file__)"]
    printed = subprocess.check_output(command, cwd=tmp_path / "job", text=True)
    assert Path(printed.strip()).is_relative_to(tmp_path / "job")


def test_a_table_beside_the_study_is_refused_or_uploaded_when_asked(tmp_path):
    file = make(tmp_path)
    with pytest.raises(DataError, match=r"^data.source: 'houses.csv' is relative .*--with-data"):
        sent(file)
    assert sent(file, with_data=True) == {"study.yaml", "houses.csv"}
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.csv").write_text("x\n1\n")
    assert sent(make(tmp_path, "parts"), with_data=True) == {"study.yaml", "parts/1.csv"}
    assert sent(make(tmp_path, "pa*/*.csv"), with_data=True) == {"study.yaml", "parts/1.csv"}


def test_the_studies_that_transfer_starts_from_go_along_with_their_tables(tmp_path):
    (tmp_path / "there").mkdir()
    make(tmp_path / "there")
    transfer = {"source": "there/study.yaml", "methods": {"distillation": {"teacher": "houses"}, "fine_tuning": {}}}
    file = make(tmp_path, transfer=transfer)
    assert sent(file, with_data=True) == {"study.yaml", "houses.csv", "there/study.yaml", "there/houses.csv"}
    with pytest.raises(StudyError, match=r"transfer.source: '../study.yaml' is not below the study file's folder"):
        sent(make(tmp_path / "there", "/shared/houses.csv", transfer={"source": "../study.yaml"}))


def test_a_run_to_transfer_from_that_the_job_would_not_find_is_refused(tmp_path, monkeypatch):
    file = make(tmp_path, "/shared/houses.csv", transfer={"source": "runs/houses"})
    assert sent(file) == {"study.yaml"}  # a name in the storage
    (tmp_path / "runs" / "houses").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="transfer.source: 'runs/houses' is a relative path"):
        sent(file)


def test_a_table_above_the_study_s_folder_cannot_be_uploaded(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "secret.csv").write_text("x\n1\n")
    with pytest.raises(DataError, match="nothing is at '../secret.csv' within"):
        sent(make(tmp_path / "study", "../secret.csv"), with_data=True)


def test_what_is_too_large_is_refused_by_the_name_of_its_largest_file(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "LIMIT_MIB", 2.0)
    file = make(tmp_path, "large.csv")
    with (tmp_path / "large.csv").open("wb") as large:
        large.truncate(3 * 2**20)
    with pytest.raises(RunError, match="would be . MiB, and 2 MiB is the most .its largest file is large.csv"):
        sent(file, with_data=True)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "study.yaml", "--set", "storage=runs"], "storage: 'runs' is relative, and would be lost"),
        (["train", "study.yaml", "--set", "tracking.uri=sqlite:///a.db"], "tracking.uri: 'sqlite:///a.db' is relative"),
        (["train", "study.yaml", "--set", f"tracking.uri=http://me:{PASSWORD}@there"], "the options: holds an address"),
        (
            ["serch", "study.yaml"],
            "is no verb that runs as a job (train, search, affinity, meta, transfer). Did you mean 'search'?",
        ),
        (["train", "study.yaml", "--trials", "3"], "No such option: --trials"),
        (["train", "study.yaml", "--set", "training.epoch=3"], "training.epoch: unknown key 'epoch'. Did you mean"),
        (["train", "--fresh", "study.yaml"], "--fresh: no such file"),
    ],
)
def test_what_a_cluster_could_not_run_is_refused_at_once(polyshot, tmp_path, arguments, words):
    make(tmp_path, "/shared/houses.csv")
    outcome = polyshot("submit", *arguments, "--address", "http://127.0.0.1:1")
    assert outcome.code == 2
    assert words in outcome.err and PASSWORD not in outcome.err


def test_credentials_in_the_study_file_are_refused(tmp_path):
    file = make(tmp_path, "/shared/houses.csv", tracking={"uri": f"http://me:{PASSWORD}@there:5000"})
    with pytest.raises(Exception, match="holds an address with a user or a password") as fault:
        submit("train", file)
    assert PASSWORD not in str(fault.value)


@pytest.fixture
def web() -> Iterator[str]:
    """A web server that is no head of a cluster."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:8265", "is no address of a cluster's Jobs API; give http://HOST:8265"),
        ("http://127.0.0.1:1", "nothing answers at http://127.0.0.1:1"),
        ("{web}", "is no Ray head with a Jobs API"),
    ],
)
def test_an_address_that_is_no_cluster_s_is_named_in_seconds(web, address, words, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")  # Ray would have it go before the address that was given
    started = time.monotonic()
    with pytest.raises(ResourceError, match="^--address: ") as fault:
        jobs(address.format(web=web))
    assert words in str(fault.value)
    assert time.monotonic() - started < 30


# --- a real head -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A head node on this machine, with a token of its own; `polyshot` runs beside it as a user's command would."""

    address: str
    folder: Path  # of all that Ray writes

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "polyshot", *map(str, arguments), "--address", self.address]
        surroundings = os.environ | token(TOKEN) | {"MLFLOW_TRACKING_PASSWORD": PASSWORD} | environment
        return subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def polyshot(self, *arguments: object, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def token(value: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": value}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_head(folder: Path, dashboard: int) -> subprocess.Popen[bytes]:
    gcs, client, agent, agent_grpc, metrics, environment = free_ports(6)
    arguments = ["--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    arguments += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    arguments += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}"]
    arguments += [f"--runtime-env-agent-port={environment}", f"--temp-dir={folder}", "--num-cpus=2"]
    arguments += ["--object-store-memory=100000000", "--disable-usage-stats"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "start.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *arguments],
            env=os.environ | token(TOKEN) | {"PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def end_head(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)  # Ray ends what it has started
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="psj-", dir="/tmp"))  # a socket's path must be short
    [dashboard] = free_ports(1)
    process = start_head(folder, dashboard)
    try:
        for _ in range(2):  # Ray gives a node half a minute to come up, which a busy machine may need more than once
            if not comes_up(process, folder):
                process = start_head(folder, dashboard)
        assert comes_up(process, folder), started(folder)
        until(lambda: listens(dashboard), 120)
        yield Head(f"http://127.0.0.1:{dashboard}", folder)
    finally:
        end_head(process)
        shutil.rmtree(folder, ignore_errors=True)


def comes_up(process: subprocess.Popen[bytes], folder: Path) -> bool:
    until(lambda: "Ray runtime started" in started(folder) or process.poll() is not None, 120)
    return process.poll() is None


def started(folder: Path) -> str:
    return (folder / "start.log").read_text()


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@dataclass(frozen=True)
class Stories:
    """Three jobs side by side: one that ends, one with a fault, one that is left alone and then stopped."""

    ended: tuple[int, str, str]
    fault: tuple[int, str, str]
    detached: tuple[int, str, str]
    stopped: str  # its name
    storage: Path


@pytest.fixture(scope="module")
def stories(head, tmp_path_factory) -> Stories:
    folder = tmp_path_factory.mktemp("study")
    file = make(folder, "mine:rows")
    endless = make(tmp_path_factory.mktemp("endless"), "mine:rows")
    long = head.start("submit", "train", endless, "--set", "training.epochs=1000000", "--no-baselines", "--wait")
    ended = head.start("submit", "train", file, "--no-baselines", "--wait")
    fault = head.polyshot("submit", "train", file, "--set", "data.source=/none.csv", "--wait")
    out, err = ended.communicate(timeout=300)
    run = endless.parent / "runs" / "houses" / "train-1" / "run.json"
    until(lambda: run.exists() or long.poll() is not None, 200)
    long.send_signal(signal.SIGINT)
    detached = long.communicate(timeout=60)
    return Stories(
        (ended.returncode, out, err), fault, (long.returncode, *detached), detached[0].split()[0], run.parents[1]
    )


pytestmark = pytest.mark.timeout(600)


@pytest.mark.cluster
def test_a_job_trains_with_the_user_s_modules_and_ends_with_zero(stories):
    code, out, err = stories.ended
    assert code == 0, out + err
    assert re.match(r"houses-train-[0-9a-f]{6}\n", out)
    assert "multi-task model: done" in out
    assert out.count("multi-task model: started") == 1  # lines come once
    assert "succeeded, exit code 0" in err


@pytest.mark.cluster
def test_a_fault_of_the_user_s_comes_back_as_exit_code_2_with_its_sentence(stories):
    code, out, err = stories.fault
    assert code == 2, out + err
    assert "error: /none.csv: no such file or folder" in out
    assert "failed, exit code 2" in err


@pytest.mark.cluster
def test_ctrl_c_leaves_the_job_running_and_stop_ends_it_so_that_it_can_go_on(stories, head):
    code, _, err = stories.detached
    assert code == 130
    assert f"the job goes on; polyshot logs {stories.stopped} -f --address {head.address} follows it" in err
    assert head.polyshot("status", stories.stopped)[1].startswith("running\n")
    watcher = head.start("watch", stories.stopped)
    assert head.polyshot("stop", stories.stopped)[:2] == (0, "it stops\n")
    code, out, _ = head.polyshot("logs", stories.stopped, "-f")
    assert code == 130
    assert "stopped; the same command goes on from here" in out
    seen, _ = watcher.communicate(timeout=300)
    assert (watcher.returncode, seen.count("multi-task model: started")) == (130, 1)
    state = json.loads((stories.storage / "train-1" / "run.json").read_text())
    assert state["status"] == "running"  # what the same command takes up again


@pytest.mark.cluster
def test_no_secret_is_in_what_the_cluster_knows_and_writes(stories, head):
    code, out, err = head.polyshot("jobs", "--json")
    assert code == 0
    assert {job["exit_code"] for job in json.loads(out)} == {0, 2, 130}
    assert {job["verb"] for job in json.loads(out)} == {"train"}
    written = [path for path in [*head.folder.rglob("*"), *stories.storage.rglob("*")] if path.is_file()]
    assert any(path.name.startswith("job-driver-") for path in written)
    for secret in (TOKEN, PASSWORD):
        assert secret not in out + err
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


@pytest.mark.cluster
@pytest.mark.usefixtures("stories")
def test_a_wrong_token_and_an_unknown_job_are_said(head):
    code, out, err = head.polyshot("jobs", **token("another"))
    assert (code, out) == (2, "")
    assert "does not accept the token; set RAY_AUTH_MODE=token" in err
    code, _, err = head.polyshot("status", "houses-train-000000")
    assert code == 2
    assert "houses-train-000000: the cluster at" in err and "has no such job; `polyshot jobs` lists them" in err
