"""Objects that studies name as `module:name`, from modules beside the study files."""

from __future__ import annotations

import sys

from polyshot.plugins import load_object


def test_each_of_two_studies_gets_its_own_module_of_the_same_name(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name / "mine_alike").mkdir(parents=True)
        (tmp_path / name / "mine_alike" / "__init__.py").write_text("from mine_alike.part import NAME\n")
        (tmp_path / name / "mine_alike" / "part.py").write_text(f"NAME = {name!r}\n")
    found = [load_object("mine_alike:NAME", tmp_path / name, "here") for name in ("first", "second", "second", "first")]
    assert found == ["first", "second", "second", "first"]


def test_a_module_is_imported_once_and_installed_ones_stay(tmp_path):
    (tmp_path / "mine_once.py").write_text("MADE = object()\n")
    (tmp_path / "json.py").write_text("")  # stands behind the standard library's, which was imported before
    one, again = (load_object("mine_once:MADE", tmp_path, "here") for _ in range(2))
    assert one is again
    assert load_object("json:loads", tmp_path, "here") is sys.modules["json"].loads
