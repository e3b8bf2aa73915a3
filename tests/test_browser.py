"""Reports and the MLflow UI as a person sees them: real runs, in a real Chromium.

`--renew-pictures` writes what is seen to docs/images.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import STUDY, learnable_table
from test_report import HOSTILE, hostile  # noqa: F401 - a fixture

from polyshot.report.page import Page, render
from polyshot.study import Study
from polyshot.verbs.report import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PHONE = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small run of each kind, in one storage, by its verb."""
    from helpers_transfer import target_study, trained_source
    from test_meta_search import waves

    from polyshot.cluster.ray import ray_session
    from polyshot.verbs.affinity import affinity
    from polyshot.verbs.meta_search import meta_search
    from polyshot.verbs.search import search
    from polyshot.verbs.train import train
    from polyshot.verbs.transfer import transfer

    folder = tmp_path_factory.mktemp("seen")
    learnable_table().to_csv(folder / "houses.csv", index=False)
    (folder / "study.yaml").write_text(STUDY)
    study = Study.load(folder / "study.yaml").with_values({"storage": str(folder / "runs")})
    quick = {"search.trials": 12, "search.grace_epochs": 1, "search.concurrency": 1}
    found = {"train": train(study, seeds=2).folder, "affinity": affinity(study).folder}
    trained_source(folder, rows=300, **{"training.epochs": 2})
    found["transfer"] = transfer(target_study(folder, rows=300, **{"training.epochs": 2})).folder
    with ray_session(study):
        found["search"] = search(study.with_values(quick)).folder
        found["meta"] = meta_search(waves(folder, **{"search.trials": 6}), baselines=False).best.folder
    return found


def opened(browser: Any, file: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A page with its plots drawn, and what its console complained about."""
    page = browser.new_context(**settings).new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda asked: complaints.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None,
    )
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    return page, complaints


PLOTS = {"train": 4, "affinity": 2, "transfer": 1, "search": 8, "meta": 5}  # at least
WORDS = {
    "train": "together",
    "affinity": "Learn",
    "transfer": "ransfer",
    "search": "together",
    "meta": "learner reaches",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLOTS)
def test_a_report_is_drawn_without_complaint_and_fits_a_phone(browser, runs: dict[str, Path], kind: str) -> None:
    page, complaints = opened(browser, runs[kind] / "report.html", **PHONE)
    assert complaints == []
    assert WORDS[kind] in page.locator("h1").inner_text()
    plots = page.locator("figure.plot").count()
    assert plots >= PLOTS[kind] and page.locator("figure.plot .main-svg:first-child").count() >= plots
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    # Whoever cannot see them is told: plots have words, tables captions, headings no gaps.
    assert all(len(words) > 20 for words in page.locator("[role=img]").evaluate_all("all => all.map(e => e.ariaLabel)"))
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("h1").count() == 1 and page.locator("h3, h4").count() == 0
    assert page.locator("#run-it-again pre").first.inner_text().startswith(f"polyshot {kind} study.yaml")
    page.context.close()


@pytest.mark.slow
def test_a_report_can_be_read_in_the_dark_and_on_paper(browser, runs: dict[str, Path], picture) -> None:
    page, complaints = opened(browser, runs["search"] / "report.html", color_scheme="dark")
    contrast = """() => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
                .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const ink = [...document.querySelectorAll("h1, td, th, dt, a, .xtick text")]
            .map((e) => getComputedStyle(e)).map((s) => light(s.fill === "rgb(0, 0, 0)" ? s.color : s.fill));
        return Math.min(...ink.map((own) => (Math.max(own, paper) + 0.05) / (Math.min(own, paper) + 0.05)));
    }"""
    assert page.evaluate(contrast) >= 4.5
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(300)
    assert page.evaluate(contrast) >= 4.5
    page.set_viewport_size({"width": 1100, "height": 1000})
    picture(page, "report")
    page.set_viewport_size({"width": 720, "height": 900})
    page.emulate_media(media="print")
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 720  # nothing is cut off
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert complaints == []
    page.context.close()


def test_an_attack_in_every_text_of_a_page_is_shown_and_not_run(
    browser,
    hostile: Page,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    (tmp_path / "page.html").write_text(render(hostile))
    page, complaints = opened(browser, tmp_path / "page.html")
    assert complaints == []
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("h1").inner_text() == HOSTILE and page.locator("img").count() == 0
    assert page.locator("tbody th").first.inner_text() == HOSTILE
    assert HOSTILE.split("'")[0] in page.locator(".xtitle").text_content()
    page.context.close()


@pytest.mark.slow
def test_an_attack_by_a_task_s_name_is_shown_and_not_run(browser, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "train-1"
    shutil.copytree(runs["train"], folder)
    rows = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps([row | {"task": f"{HOSTILE}{row['task']}"} for row in rows]))
    page, complaints = opened(browser, report(folder))
    assert complaints == [] and page.evaluate("typeof hacked") == "undefined"
    assert page.locator("tbody th").first.inner_text().startswith(HOSTILE)
    page.context.close()


# --- the MLflow UI ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(runs: dict[str, Path]) -> Iterator[str]:
    """The address of `polyshot ui` over the storage of the runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "polyshot", "ui", "--storage", str(runs["train"].parents[1]), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 - on loopback
                break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the MLflow UI does not start"
            time.sleep(0.5)
    yield address
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Writes what is seen to docs/images, when that was asked for."""

    def take(page: Any, name: str) -> None:
        if request.config.getoption("--renew-pictures"):
            page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")

    return take


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Any]:
    """What MLflow knows by the keys that its pages are addressed by: the houses' experiment, its runs, a model."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs['train'].parents[1]}/mlflow.db")
    ids = {name: client.get_experiment_by_name(name).experiment_id for name in ("houses", "waves")}
    [model, *_] = client.search_logged_models([ids["houses"]])
    parents = {kind: json.loads((runs[kind] / "run.json").read_text())["mlflow_id"] for kind in ("search", "meta")}
    return {"experiments": ids, "model": model.model_id, "parents": parents}


@pytest.fixture(scope="module")
def ui(browser, server: str) -> Iterator[Any]:
    """One tab on the MLflow UI: its scripts are loaded once."""
    page = browser.new_context(viewport={"width": 1500, "height": 950}).new_page()
    page.set_default_timeout(60_000)
    page.goto(server)
    page.get_by_role("button", name="Close").click()  # an assistant, which opens by itself at the first visit
    yield page
    page.context.close()


def show(page: Any, server: str, place: str, **query: str) -> None:
    page.goto(f"{server}/#/{place}" + (f"?{urllib.parse.urlencode(query)}" if query else ""))


TRIALS = "tags.`polyshot.kind` = 'trial'"


def opened_parent(ui: Any, server: str, experiment: str, parent: str) -> Any:
    """The table of an experiment's runs, with the children of one; the rows of its trials."""
    show(ui, server, f"experiments/{experiment}/runs")
    row = ui.locator(".ag-row", has_text=parent).first
    row.wait_for()
    assert ui.locator(".ag-row", has_text="trial 0").count() == 0  # two hundred of them would hide all else
    row.get_by_role("button").first.click()
    ui.get_by_text("trial 0000", exact=True).first.wait_for()
    return ui.locator(".ag-row", has_text="trial 0")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "study", "parameter"), [
    ("search", "houses", "tasks.price.weight"),
    ("meta", "waves", "meta.learner.rate"),
])  # fmt: skip
def test_ticked_trials_are_compared_by_what_was_searched(ui, server, found, picture, kind, study, parameter) -> None:
    trials = opened_parent(ui, server, found["experiments"][study], f"{kind}-1")
    if kind == "search":
        picture(ui, "mlflow-runs")
    assert trials.count() >= 6 and "trial" in trials.first.inner_text()
    for trial in trials.all():
        trial.locator(".ag-selection-checkbox input").click(force=True)
    ui.get_by_test_id("runs-compare-button").click()
    ui.get_by_role("tab", name="Parallel Coordinates Plot").wait_for()
    ui.locator(".js-plotly-plot").first.wait_for()
    ui.wait_for_timeout(1000)  # the lines are drawn after the axes
    shown = ui.locator("body").inner_text()
    assert parameter in shown and "objective" in shown
    picture(ui, {"search": "mlflow-compare", "meta": "mlflow-compare-meta"}[kind])
    ui.get_by_role("tab", name="Scatter Plot").click()
    panel = ui.get_by_role("tabpanel", name="Scatter Plot")
    panel.locator(".js-plotly-plot").first.wait_for()
    assert parameter in panel.inner_text() and "objective" in panel.inner_text()


@pytest.mark.slow
def test_charts_show_learning_curves_of_trials(ui, server, found, picture) -> None:
    show(ui, server, f"experiments/{found['experiments']['houses']}/runs", searchFilter=TRIALS, compareRunsMode="CHART")
    ui.get_by_placeholder("Search metric charts").fill("progress/val")
    ui.locator(".js-plotly-plot .scatterlayer .trace").nth(3).wait_for(state="attached")  # several trials' curves
    assert "progress/val" in ui.locator("body").inner_text()
    picture(ui, "mlflow-charts")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "study", "parameter", "best"), [
    ("search", "houses", "tasks.price.weight", max),
    ("meta", "waves", "meta.learner.rate", min),
])  # fmt: skip
def test_the_menu_of_views_has_the_trials_best_first(ui, server, found, picture, kind, study, parameter, best) -> None:
    show(ui, server, f"experiments/{found['experiments'][study]}/runs")
    ui.get_by_role("button", name="Views").click()
    ui.get_by_text(f"{kind}-1", exact=True).last.click()
    ui.get_by_role("button", name="Exit shared view").wait_for()
    ui.locator(".ag-row", has_text=f"{kind}-1").wait_for(state="detached")
    names = [name.strip() for name in ui.locator(".ag-header-cell").all_inner_texts()]
    assert "objective" in names
    assert any(parameter.startswith(name) for name in names if name not in ("", "objective"))
    cells = ui.locator(".ag-cell[col-id*='objective']").evaluate_all(
        "all => all.map(e => [Number(e.closest('.ag-row').getAttribute('row-index')), e.innerText])"
    )
    shown = [float(text) for _, text in sorted(cells) if text.strip() not in ("", "-")]
    assert len(shown) >= 6 and shown[0] == best(shown)
    assert ui.locator(".ag-row", has_text="baseline").count() == 0
    if kind == "search":
        picture(ui, "mlflow-view")
    ui.get_by_role("button", name="Exit shared view").click()


@pytest.mark.slow
def test_the_page_of_a_model_has_its_signature(ui, server, found, picture) -> None:
    show(ui, server, f"experiments/{found['experiments']['houses']}/models/{found['model']}/artifacts")
    ui.get_by_text("MLmodel", exact=True).first.click()
    ui.wait_for_function("document.body.innerText.includes('sold_probability')")
    shown = ui.locator("body").inner_text()
    assert "signature" in shown and "size" in shown
    picture(ui, "mlflow-model")


@pytest.mark.slow
def test_a_search_s_own_page_says_the_verdict_and_shows_its_report(ui, server, found) -> None:
    show(
        ui,
        server,
        f"experiments/{found['experiments']['houses']}/runs/{found['parents']['search']}/artifacts/report.html",
    )
    frame = ui.frame_locator("iframe").first
    frame.locator("h1").wait_for()
    assert "together" in frame.locator("h1").inner_text()
    frame.locator("html[data-drawn]").wait_for(state="attached")
    assert frame.locator(".main-svg").count() > 5
