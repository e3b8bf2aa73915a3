"""Reports without a browser: what a page says, and what it never does. test_browser.py looks at them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from polyshot.report import charts
from polyshot.report.page import Badge, Code, Page, Plot, Section, Table, Text, render
from polyshot.report.words import by_verdict, interval, listed, number, percent, sharing_verdict

HOSTILE = """<img src=x onerror="hacked=1">'</script><script>hacked=1</script>{{ 7 * 7 }}"""


def without_plotly(page: str) -> str:
    """The page less the library in it."""
    return re.sub(r"<script nonce=\"[^\"]*\">/\*\*\n\* plotly\.js.*?</script>", "", page, flags=re.DOTALL)


@pytest.fixture
def hostile() -> Page:
    """A page whose every text is an attack."""
    data = [{"type": "scatter", "x": [HOSTILE, "b"], "y": [1.0, float("nan")], "name": HOSTILE, "text": [HOSTILE] * 2}]
    plot = Plot(HOSTILE, HOSTILE, {"data": data, "layout": {"xaxis": {"title": {"text": HOSTILE}}}})
    table = Table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, 1.5], ["b", Badge(HOSTILE, "good")]])
    blocks = [Text(HOSTILE), plot, table, Code(HOSTILE, HOSTILE, "study.yaml")]
    return Page(HOSTILE, HOSTILE, HOSTILE, "bad", [HOSTILE], [(HOSTILE, HOSTILE)], [Section(HOSTILE, blocks)])


def test_a_page_holds_texts_as_text_and_the_library_once(hostile: Page) -> None:
    page = render(hostile)
    assert page.count("plotly.js v") == 1
    own = without_plotly(page)
    assert len(own) < 50_000
    assert "<img" not in own and "<script>" not in own and "{{ 7 * 7 }}" in own
    assert set(re.findall(r"<script[^>]*nonce=\"([^\"]+)\"", own)) == set(re.findall(r"'nonce-([^']+)'", own))
    assert len(re.findall(r"</script>", own)) == 2  # the plot's data, and what draws it
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", own)


def test_a_plot_s_numbers_are_json_and_its_texts_have_no_tags(hostile: Page) -> None:
    [spec] = re.findall(r"<script type=\"application/json\"[^>]*>(.*?)</script>", render(hostile), flags=re.DOTALL)
    spec = json.loads(spec)
    assert spec["data"][0]["y"] == [1.0, None]
    assert "<" not in spec["data"][0]["name"] + spec["layout"]["xaxis"]["title"]["text"]


def test_figures_are_written_as_they_are_read() -> None:
    assert [number(value) for value in (31240.4, 0.12345, -2.5e-7, None, float("nan"))] == [
        "31,240", "0.1235", "−2.5e−07", "–", "–",
    ]  # fmt: skip
    assert percent(-0.0512) == "−5.12 %" and interval(0.01, None) == "–"
    assert percent(-1e-9) == percent(0.0) == "+0.00 %"
    assert interval(-0.01, 0.02) == "−1.00 % to +2.00 %" and interval(1.0, 2.0, float) == "1 to 2"
    assert listed(["a"]) == "a" and listed("abc") == "a, b and c"


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["helped", "hurt"], "helped a and hurt b."),
        (["helped", "within noise"], "helped a and hurt none."),
        (["helped", "helped"], "helped a and b."),
        (["hurt", "unknown"], "hurt a and helped none: negative transfer."),
        (["within noise", "unknown"], "no difference that can be told from noise."),
    ],
)
def test_the_verdict_names_who_was_helped_and_who_was_hurt(verdicts: list[str], words: str) -> None:
    table = pd.DataFrame({"split": "test", "task": ["a", "b"], "improvement": [0.2, 0.1], "verdict": verdicts})
    assert sharing_verdict(by_verdict(table)).endswith(words)


def test_lines_through_values_that_only_some_trials_have_are_broken() -> None:
    trials = pd.DataFrame(
        {
            "number": [3, 1, 2],
            "state": "finished",
            "improvement": [0.3, 0.2, 0.1],
            "rate": [1e-4, 1e-1, 1e-2],
            "kind": ["a", "b", "a"],
            "depth": [None, 2.0, 4.0],
        }
    )
    keys = charts.searched_keys(trials, "improvement")
    assert keys == ["rate", "kind", "depth"]
    spec = charts.parallel_coordinates(trials, keys, "improvement").spec
    others, best = spec["data"]
    assert best["y"] == [0.0, 0.0, None, 1.0, None]  # the logarithm's foot, the first kind, nothing, the top
    assert others["y"][:4] == pytest.approx([1, 1, 0, 0.5]) and others["y"][5] == pytest.approx(2 / 3)
    assert {"a", "b", "0.0001", "0.1"} <= {note["text"] for note in spec["layout"]["annotations"]}


def test_a_trained_run_has_a_report_beside_it_and_in_mlflow(polyshot, houses: Path) -> None:
    done = polyshot("train", houses)
    assert done.code == 0, done.err
    folder = houses.parent / "polyshot-runs" / "houses" / "train-1"
    assert f"report    {folder.relative_to(houses.parent)}/report.html" in done.out
    page = (folder / "report.html").read_text()
    assert "<h1>Learning together" in page and "polyshot train study.yaml --fresh" in page

    from mlflow import MlflowClient

    run = json.loads((folder / "run.json").read_text())["mlflow_id"]
    client = MlflowClient(f"sqlite:///{houses.parent}/polyshot-runs/mlflow.db")
    assert "report.html" in {file.path for file in client.list_artifacts(run)}

    again = polyshot("report", "houses", "-o", "elsewhere.html")
    assert (again.code, again.out) == (0, "elsewhere.html\n"), again.err
    assert without_nonce((houses.parent / "elsewhere.html").read_text()) == without_nonce(page)
    (folder / "metrics.json").unlink()
    refused = polyshot("report", folder)
    assert refused.code == 2 and "metrics.json" in refused.err and "has not ended" in refused.err
    assert polyshot("report", "nothing").code == 2


def without_nonce(page: str) -> str:
    return re.sub(r"nonce[-=][^' >]*", "", page)
