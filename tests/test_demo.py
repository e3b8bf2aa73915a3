"""The demo's studies fit their tables, and its commands are the command line's (`.ci/tutorials` runs them)."""

from __future__ import annotations

import pytest
import typer

from polyshot.cli import app
from polyshot.demo import STEPS, STUDIES, write_demo
from polyshot.study import Study


def test_each_step_is_a_command_about_one_of_its_studies():
    verbs = typer.main.get_command(app).commands
    for step in STEPS:
        verb, *arguments = step.command
        verbs[verb].make_context(verb, list(arguments))
        assert set(arguments) <= set(STUDIES)


def test_every_study_reads_its_table(tmp_path):
    from polyshot.data.prepare import prepare
    from polyshot.meta.episodes import build_source

    write_demo(tmp_path)
    assert len(prepare(Study.load(tmp_path / "blood.yaml")).train) == 210
    assert len(prepare(Study.load(tmp_path / "progression.yaml")).test) == 43
    assert build_source(Study.load(tmp_path / "digits.yaml"), None).shape == (1, 8, 8)


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_person_changed_in_its_folder_stays(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "blood.csv").touch()
    (tmp_path / "progression.csv").touch()
    write_demo(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert all((tmp_path / other).exists() for other in STUDIES)
