"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *kinds: str) -> Iterator[str]:
    """The code in blocks of these kinds, those in tabs as well."""
    pattern = re.compile(rf"^( *)```({'|'.join(kinds)})\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    for _, _, text in pattern.findall(page.read_text(encoding="utf-8")):
        yield textwrap.dedent(text)


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `polyshot` in each command of a page."""
    for block in blocks(page, "bash", "sh"):
        for line in re.split(r"\n|&&|\|", block.replace("\\\n", " ")):
            words = shlex.split(line, comments=True) if "polyshot " in line else []
            if "polyshot" in words:
                yield words[words.index("polyshot") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_that_the_command_line_takes(page):
    import typer

    from polyshot.cli import app

    verbs = typer.main.get_command(app).commands
    for verb, *arguments in commands(page):
        if not verb.startswith("-"):
            # Raises for an option or a number of arguments that it has not.
            assert verbs[verb].make_context(verb, arguments).info_name == verb


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_study_of_a_page_is_valid(page):
    from polyshot.study import Study
    from polyshot.study_file import parse_yaml

    for block in blocks(page, "yaml"):
        values, _ = parse_yaml(block, page.name)
        if isinstance(values, dict) and "name" in values:
            assert Study.from_dict(values).name == values["name"]


def test_every_example_is_valid_and_begins_with_its_command():
    from polyshot.study import Study

    files = sorted((ROOT / "examples").glob("*/*.yaml"))
    for path in files:
        study = Study.load(path)
        head, _, _ = path.read_text(encoding="utf-8").partition("\nname:")
        assert re.search(rf"^#.*polyshot [\w-]+ examples/{path.parent.name}/\w+\.yaml", head, re.MULTILINE), path
        assert study.transfer.source is None or (path.parent / study.transfer.source).exists(), path
    assert len(files) > 10


def test_every_page_is_in_the_site_s_contents():
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", contents))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[2:]} <= listed


def test_every_tutorial_is_run():
    run = (ROOT / ".ci" / "tutorials").read_text(encoding="utf-8")
    pages = [page for folder in ("tutorials", "coming-from") for page in (ROOT / "docs" / folder).glob("*.md")]
    assert [page.name for page in pages if f'"{page.parent.name}/{page.name}"' not in run] == []


def test_every_fault_that_is_survived_has_protections_that_stand_in_the_code():
    lines = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    table = [line.removeprefix("| ") for line in lines if line.startswith("| ") and "`test_" in line]
    protections = runpy.run_path(str(ROOT / ".ci" / "protections"))
    faults = {line: [each for each in protections["PROTECTIONS"] if line.startswith(each.row)] for line in table}
    assert [line for line, own in faults.items() if not own] == []
    assert sum(map(len, faults.values())) == len(protections["PROTECTIONS"])
    files = {place: source for source, place in protections["PLACES"].items()}
    for line, own in faults.items():
        for each in own:
            file, _, name = each.test.partition("::")
            assert file in line and name.partition("[")[0] in line
            assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
            place = max((place for place in files if f"polyshot/{each.file}".startswith(place)), key=len)
            code = ROOT / files[place] / f"polyshot/{each.file}".removeprefix(f"{place}/")
            assert [old for old, _ in each.changes if code.read_text(encoding="utf-8").count(old) != 1] == [], each.file


def test_the_site_s_headings_are_those_of_the_command_line():
    from polyshot.cli import HEADINGS

    _, _, contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    headings = re.findall(r'^  - "?([^"\n]+?)"?:$', contents, re.MULTILINE)
    assert headings[: len(HEADINGS)] == list(HEADINGS)


def test_the_page_about_the_study_file_is_the_schema_s():
    spec = importlib.util.spec_from_file_location("generate_study_file", ROOT / "docs" / "generate_study_file.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8") == generator.page()
