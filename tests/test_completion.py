"""What the shell is offered, as it asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture
def folder(tmp_path):
    for name in ("study.yaml", "star/study.yml", "star/rows.csv", ".hidden/study.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("stars/train-1", "stars/search-2", "houses/train-1"):
        (tmp_path / "polyshot-runs" / name).mkdir(parents=True)
        (tmp_path / "polyshot-runs" / name / "run.json").touch()
    return tmp_path


def offered(folder, words: str) -> list[str]:
    """What bash shows after `polyshot` and these words."""
    place = {"_POLYSHOT_COMPLETE": "complete_bash", "COMP_WORDS": f"polyshot {words}"}
    count = len(place["COMP_WORDS"].split()) - (not words.endswith(" "))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['polyshot']; from polyshot.cli import app; app(prog_name='polyshot')",
        ],
        cwd=folder,
        env=os.environ | place | {"COMP_CWORD": str(count)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def test_verbs_study_files_and_runs_are_completed(folder):
    assert offered(folder, "tra") == ["train", "transfer"]
    assert offered(folder, "train s") == ["star/study.yml", "study.yaml"]
    assert offered(folder, "predict st") == ["stars", "star/study.yml", "study.yaml"]
    assert offered(folder, "serve polyshot-runs/stars/") == [
        "polyshot-runs/stars/search-2",
        "polyshot-runs/stars/train-1",
    ]


def test_nothing_heavy_is_loaded_for_it():
    code = (
        "import sys, polyshot.cli, polyshot.completion as c; c.runs('', __import__('pathlib').Path('.')); "
        "print({'torch', 'ray', 'mlflow', 'pandas', 'sklearn', 'pydantic'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
