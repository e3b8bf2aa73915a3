"""`polyshot serve`, a real server on a free port: what it answers, what it refuses and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import STUDY, learnable_table

from polyshot.errors import RunError

ROW = {"size": 104.5, "age": 12, "town": "Birch", "garden": True, "built": "2008-05-01", "street": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that predicts `price` and `sold`."""
    from polyshot.data.prepare import prepare
    from polyshot.saved_model import save_model
    from polyshot.study import Study
    from polyshot.training.loop import TrainingRun

    home = tmp_path_factory.mktemp("serving")
    (home / "study.yaml").write_text(STUDY)
    study = Study.load(home / "study.yaml").with_values({"training.epochs": 2})
    prepared = prepare(study, learnable_table())
    run = TrainingRun(study, prepared)
    list(run.epochs())
    save_model(home / "model", study, prepared, run)
    return home / "model"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[subprocess.Popen]:
    """`polyshot serve`; its address is where it listens, and `words` is what it has printed till then."""
    command = [sys.executable, "-m", "polyshot", "serve", model, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout is not None
        process.words = [process.stdout.readline() for _ in range(3)]
        process.address = re.search(r"http://\S+", process.words[0]).group()
        yield process
    finally:
        process.kill()
        process.wait()


def ask(
    address: str,
    body: Any = None,
    *,
    path: str = "/invocations",
    kind: str = "application/json",
    host: str | None = None,
) -> tuple[int, Any]:
    """The status and the JSON of an answer; `body` is sent as it is when it is bytes, else as JSON."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {"Content-Type": kind} | ({"Host": host} if host else {})
    request = urllib.request.Request(address + path, data, headers)  # noqa: S310 - of the server under test
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    return status, json.loads(text) if text.startswith(b"{") else text.decode()


def test_one_answer_holds_all_tasks_as_predict_gives_them_whatever_the_format(server, model):
    from polyshot.saved_model import SavedModel

    rows = pd.DataFrame([ROW, ROW | {"town": "Cedar", "size": None}])
    expected = SavedModel.load(model).predict(rows).to_dict(orient="records")
    split = rows.astype(object).where(rows.notna(), None).to_dict(orient="split")
    csv = rows.to_csv(index=False).encode()
    for answer in (
        ask(server.address, {"dataframe_records": [ROW, ROW | {"town": "Cedar", "size": None}]}),
        ask(server.address, {"dataframe_split": {"columns": split["columns"], "data": split["data"]}}),
        ask(server.address, csv, kind="text/csv; charset=utf-8"),
    ):
        assert answer == (200, {"predictions": expected})
    assert set(expected[0]) == {"price", "sold", "sold_probability"}


def without(column: str) -> dict[str, Any]:
    return {name: value for name, value in ROW.items() if name != column}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"dataframe_records": [without("age")]}, "the table has no column 'age'"),
        ({"dataframe_records": [without("town") | {"twon": "Birch"}]}, "Did you mean 'twon'?"),
        ({"dataframe_records": [ROW, ROW | {"age": "old"}]}, "the column 'age' holds 'old' in row 2 where a number"),
        ({"dataframe_records": [ROW | {"built": "soon"}]}, "an ISO date (2024-12-31) is expected"),
        ({"dataframe_records": [ROW | {"size": [1]}]}, "the column 'size' holds a list or an object in row 1"),
        ({"dataframe_records": [ROW, without("age")]}, "row 2 has no 'age'"),
        ({"dataframe_records": []}, "there are no rows"),
        ({"dataframe_record": [ROW]}, "Did you mean 'dataframe_records'?"),
        ({"dataframe_split": {"columns": ["size"], "data": [[1, 2]]}}, "rows of 1 values"),
        ([ROW], "must be a JSON object with one of dataframe_records and dataframe_split"),
        (b'{"dataframe_records": [{"size": NaN}]}', "holds NaN, which JSON has not; write null"),
        (b'{"dataframe_records": [{"size": 1e999}]}', "the table has no column"),
        (json.dumps({"dataframe_records": [ROW]}).replace("104.5", "1e999").encode(), "1 infinite value"),
        (json.dumps({"dataframe_records": [ROW]}).replace("104.5", "9" * 400).encode(), "1 infinite value"),
        (b"{", "the body is no JSON"),
        (b"\xff", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_that_do_not_fit_are_refused_in_one_sentence_of_json(server, body, words):
    status, answer = ask(server.address, body)
    assert (status, answer["error_code"]) == (400, "BAD_REQUEST")
    assert words in answer["message"]
    assert "\n" not in answer["message"]


def test_other_bodies_and_places_are_refused_as_json(server):
    assert ask(server.address, b"", kind="text/csv")[0] == 400
    assert ask(server.address, b"{}", kind="text/plain")[0] == 415  # what any web page may send without asking
    assert ask(server.address, path="/elsewhere")[0] == 404
    assert ask(server.address, path="/invocations")[0] == 405
    assert ask(server.address, b" " * (64 * 2**20 + 1)) == (
        413,
        {"error_code": "BAD_REQUEST", "message": "the request is larger than 64 MiB; send fewer rows at a time"},
    )


def test_only_this_machine_is_answered_and_not_under_another_s_name(server):
    assert server.address.startswith("http://127.0.0.1:")
    assert ask(server.address, path="/ping", host="evil.example")[0] == 400


def test_it_tells_its_health_and_what_it_reads_and_gives(server):
    assert ask(server.address, path="/health") == ask(server.address, path="/ping") == (200, {"status": "ok"})
    status, about = ask(server.address, path="/")
    assert (status, about["tasks"]) == (200, {"price": "regression", "sold": "binary"})
    assert about["inputs"]["built"] == "date"
    assert list(about["inputs"]) == list(ROW)


def test_the_command_that_it_prints_works_as_it_stands(server):
    command = next(line for line in server.words if line.startswith("try")).removeprefix("try").strip()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)["predictions"][0]) == {"price", "sold", "sold_probability"}


def test_a_model_of_images_is_not_served_since_requests_would_name_files_of_the_server(model):
    from polyshot.saved_model import SavedModel
    from polyshot.serving import application

    saved = SavedModel.load(model)
    saved.features.kinds["photo"] = "image"
    with pytest.raises(RunError, match=r"reads images \('photo'\), which are not served; use `polyshot predict`"):
        application(saved)


def test_a_port_that_is_taken_is_said(server, model, polyshot):
    port = server.address.rpartition(":")[2]
    ended = polyshot("serve", model, "--port", port)
    assert ended.code == 2
    assert ended.err.startswith(f"error: serve: 127.0.0.1:{port} cannot be listened on")


def test_ctrl_c_ends_it_cleanly(server):  # the last of this file: it ends the server of all of them
    server.send_signal(signal.SIGINT)
    rest = server.communicate(timeout=30)[0]
    assert server.returncode == 0
    assert rest.splitlines()[-1] == "stopped"
    assert "Traceback" not in rest
