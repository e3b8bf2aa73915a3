"""Objects that studies name as `module:name`, from modules beside the study files."""

from __future__ import annotations

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from polyshot.plugins import load_object


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_each_of_two_studies_gets_its_own_module_of_the_same_name(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name / "mine_alike").mkdir(parents=True)
        (tmp_path / name / "mine_alike" / "__init__.py").write_text("from mine_alike.part import NAME\n")
        (tmp_path / name / "mine_alike" / "part.py").write_text(f"NAME = {name!r}\n")
    found = [load_object("mine_alike:NAME", tmp_path / name, "here") for name in ("first", "second", "second", "first")]
    assert found == ["first", "second", "second", "first"]


def test_a_module_is_imported_once_and_installed_ones_stay(tmp_path):
    (tmp_path / "mine_once.py").write_text("MADE = object()\n")
    (tmp_path / "json.py").write_text("")
    one, again = (load_object("mine_once:MADE", tmp_path, "here") for _ in range(2))
    assert one is again
    assert load_object("json:loads", tmp_path, "here") is sys.modules["json"].loads


def test_a_module_with_a_name_of_the_standard_library_is_nobody_else_s(tmp_path):
    """A process that is started from here is given this one's path: it would fail where it imports the user's."""
    (tmp_path / "json.py").write_text("raise AssertionError('not the standard library')\n")
    (tmp_path / "mine_beside.py").write_text("MADE = 1\n")
    load_object("mine_beside:MADE", tmp_path, "here")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(json.loads, "[1]").result() == [1]


def test_a_module_beside_the_study_goes_before_an_installed_one(tmp_path):
    for name in ("installed", "study"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine_or_theirs.py").write_text(f"NAME = {name!r}\n")
    sys.path.append(str(tmp_path / "installed"))
    assert load_object("mine_or_theirs:NAME", tmp_path / "study", "here") == "study"
