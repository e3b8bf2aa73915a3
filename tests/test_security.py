"""What a study, a model or an event from outside cannot do, and what never leaves the process (docs/security.md)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import STUDY

from polyshot.errors import StudyError
from polyshot.study import Study

ROOT = Path(__file__).parents[1]
CODE = [file for part in ("platform", "meta", "search_spaces") for file in sorted((ROOT / part).rglob("*.py"))]
CANARY = "kanarienvogel"


# --- code ------------------------------------------------------------------------------------------------------------


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def options(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_nothing_is_unpickled_or_run_that_came_from_a_file():
    forbidden = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.load", "os.system", "joblib.load"}
    found = [
        f"{file.name}:{call.lineno} {name}"
        for file in CODE
        for name, call in calls(file)
        if name in forbidden
        or (name == "torch.load" and options(call).get("weights_only") != "True")
        or (name.endswith("np.load") and options(call).get("allow_pickle") != "False")
        or (name.endswith(("extractall", "unpack_archive")))
        or options(call).get("shell") == "True"
    ]
    assert found == []


def test_a_study_file_that_would_make_an_object_is_refused(tmp_path):
    (tmp_path / "study.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(StudyError, match="could not determine a constructor"):
        Study.load(tmp_path / "study.yaml")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "..", ""])
def test_a_study_s_name_is_no_path(name):
    with pytest.raises(StudyError, match="name"):
        Study.from_dict({"name": name, "data": {"source": "x.csv"}, "tasks": {"a": {"kind": "regression"}}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"data.source": "mine:rows"}, "mine:rows (data.source)"),
        ({"tasks.price.source": "mine:rows"}, "mine:rows (tasks.price.source)"),
        ({"model.encoder": {"kind": "mine:Encoder"}}, "mine:Encoder (model.encoder.kind)"),
        ({"search.spaces": ["task_weights", "mine:space"]}, "mine:space (search.spaces.1)"),
        (
            {"search.space": {"model.encoder.kind": {"choice": ["mlp", "mine:Encoder"]}}},
            "mine:Encoder (search.space.model.encoder.kind.choice.1)",
        ),
        ({"meta.episodes": {"kind": "classes", "source": "mine:images"}}, "mine:images (meta.episodes.source)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_check_says_which_code_a_study_runs_and_runs_none_of_it(polyshot, tmp_path, values, named):
    (tmp_path / "mine.py").write_text(f"import os; os.mkdir('{tmp_path}/executed')")
    (tmp_path / "study.yaml").write_text(Study.from_dict(_tree(values)).to_yaml())
    outcome = polyshot("check", "study.yaml")
    assert outcome.code == 0, outcome.err
    assert f"# runs code of yours: {named}" in outcome.err
    assert not (tmp_path / "executed").exists()


def _tree(values: dict) -> dict:
    import yaml

    tree = yaml.safe_load(STUDY)
    for key, value in values.items():
        *parents, leaf = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return tree


def test_a_study_that_names_no_module_runs_none(polyshot, houses):
    outcome = polyshot("check", houses)
    assert outcome.code == 0
    assert "runs code" not in outcome.err


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_what_a_run_writes_holds_no_credentials(polyshot, houses, monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, CANARY)
    outcome = polyshot("train", houses, "--no-baselines")
    assert outcome.code == 0, outcome.err
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "mlflow.db" for file in written)
    assert CANARY not in outcome.out + outcome.err
    assert [file for file in written if CANARY.encode() in file.read_bytes()] == []


def test_a_study_is_written_without_the_credentials_of_its_addresses(polyshot, houses):
    houses.write_text(houses.read_text() + f"tracking: {{uri: 'http://me:{CANARY}@there:5000/x'}}\n")
    outcome = polyshot("check", houses)
    assert "uri: http://there:5000/x\n" in outcome.out
    assert CANARY not in outcome.out + outcome.err


# --- ports -----------------------------------------------------------------------------------------------------------

LISTENERS = """
import json, ray
import psutil  # which Ray brings along, for those who have imported it
from polyshot.cluster.ray import ray_session
from polyshot.study import Study

study = Study.from_dict({"name": "s", "data": {"source": "t.csv"}, "tasks": {"a": {"kind": "regression"}}})

@ray.remote
def nothing():
    pass

with ray_session(study):
    ray.get(nothing.remote())
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    connections = [each for process in tree for each in process.net_connections("inet")]
    print(json.dumps(sorted({each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN})))
"""


@pytest.mark.slow
def test_the_embedded_ray_listens_on_loopback_only():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    printed = subprocess.check_output([sys.executable, "-c", LISTENERS], env=environment, text=True)
    addresses = set(ast.literal_eval(printed.splitlines()[-1]))
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
