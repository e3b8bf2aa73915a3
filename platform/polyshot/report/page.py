"""A report as one HTML page that needs nothing else: text, tables and plots in sections, rendered by a template.

Called by the modules beside it, which say what a page holds. It knows neither runs nor studies, and trusts no text:
all of it is escaped, in HTML and in plots, and the page forbids itself to load anything.
"""

from __future__ import annotations

import html
import math
import secrets
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from polyshot.report.words import number

Tone = Literal["good", "bad", "mixed", "neutral"]
TONES: dict[str, Tone] = {"helped": "good", "hurt": "bad", "within noise": "neutral", "unknown": "neutral"}


@dataclass(frozen=True)
class Badge:
    """A word in a cell of a table that is to be seen from afar; the word says it, the colour only repeats it."""

    word: str
    tone: Tone


Cell = str | int | float | Badge | None


@dataclass(frozen=True)
class Text:
    words: str


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Attributes:
        caption: says what it holds.
        rows: as long as `head`; the first cell names its row.
        shown: rows that are seen at once; the others are folded away.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    shown: int = 20


@dataclass(frozen=True)
class Plot:
    """An interactive plot.

    Attributes:
        caption: what it shows, as a title.
        words: what can be seen in it, for who cannot see it.
        spec: `data` and `layout` of Plotly, with colours by name (see `charts`).
        height: in CSS pixels.
        width: the least one at which it can be read; on a narrower screen it is scrolled.
        most: the greatest width that is of use, where there is one.
    """

    caption: str
    words: str
    spec: dict[str, Any]
    height: int = 340
    width: int = 0
    most: int = 0


@dataclass(frozen=True)
class Code:
    """Lines to copy; `file` is the name under which they can be saved."""

    caption: str
    text: str
    file: str | None = None

    @property
    def address(self) -> str:
        return f"data:text/plain;charset=utf-8;base64,{b64encode(self.text.encode()).decode()}"


@dataclass(frozen=True)
class Grid:
    """Small plots side by side, as many as the screen has room for."""

    plots: Sequence[Plot]


Block = Text | Table | Plot | Code | Grid


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes:
        title: of the browser's window.
        kicker: the line over the verdict, which says what was run.
        verdict: the outcome in one sentence.
        tone: whether that is good news.
        lead: sentences that the verdict needs.
        facts: names and values, in a row.
    """

    title: str
    kicker: str
    verdict: str
    tone: Tone
    lead: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as HTML."""
    template = _environment().get_template("page.html")
    return template.render(
        page=page, style=_asset("page.css"), script=_asset("page.js"), plotly=_plotly(), nonce=secrets.token_urlsafe(12)
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("polyshot.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["cell"] = cell
    environment.tests["badge"] = lambda value: isinstance(value, Badge)
    environment.tests["a_number"] = lambda value: isinstance(value, int | float)
    environment.filters["spec"] = plain
    return environment


def _asset(name: str) -> Markup:
    return Markup(files("polyshot.report").joinpath("templates", name).read_text(encoding="utf-8"))  # noqa: S704 - ours


def _plotly() -> Markup:
    return Markup(files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8"))  # noqa: S704


def cell(value: Cell) -> str:
    """A cell's text: numbers to four digits, a dash for what is not there."""
    return number(value) if value is None or isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """A plot's spec as JSON can hold it: without NaN, its texts escaped, since Plotly reads tags in them.

    Colours and keys are the charts' own and stay; so do templates of hover texts, which hold Plotly's own tags.
    """
    if isinstance(value, dict):
        return {name: item if name == "hovertemplate" else plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return html.escape(value, quote=False)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
