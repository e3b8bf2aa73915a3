"""The progress display of the command line: a block that updates in place, or plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from polyshot.progress import Progress

_LINE_SECONDS = 10.0  # at most one plain line per activity in this time


class Display(Progress):
    """Shows a verb's progress on `stream` while it is entered."""

    def __init__(self, stream: TextIO):
        self._console = Console(file=stream, highlight=False)
        self._plain = not self._console.is_terminal
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
        )
        self._ids: dict[str, int] = {}
        self._totals: dict[str, int | None] = {}
        self._best: dict[str, float] = {}
        self._best_of_any: dict[str, float] = {}
        self._last_line: dict[str, float] = {}
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if not self._plain:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._plain:
            self._live.stop()

    def start(self, activity: str, total: int | None = None) -> None:
        self._totals[activity] = total
        if self._plain:
            self._console.print(f"{activity}: started" + (f" ({total})" if total else ""))
        else:
            self._ids[activity] = self._bars.add_task(activity, total=total, words="")
            self._refresh()

    def advance(self, activity: str, completed: int, words: str = "") -> None:
        if not self._plain:
            self._bars.update(self._ids[activity], completed=completed, words=words)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        if now - self._last_line.get(activity, now - _LINE_SECONDS) >= _LINE_SECONDS:
            self._last_line[activity] = now
            total = self._totals.get(activity)
            self._console.print(f"{activity}: {completed}" + (f"/{total}" if total else "") + f" {words}".rstrip())

    def finish(self, activity: str, words: str = "") -> None:
        if self._plain:
            self._console.print(f"{activity}: done {words}".rstrip())
        else:
            task = self._ids[activity]
            self._bars.update(task, words=words)  # type: ignore[arg-type]
            self._bars.stop_task(task)  # type: ignore[arg-type]
            self._refresh()

    def best(self, values: dict[str, float], of_any: dict[str, float]) -> None:
        if self._plain and values != self._best:
            self._console.print("best trial: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self._best, self._best_of_any = values, of_any
        self._refresh()

    def note(self, text: str) -> None:
        self._console.print(text)

    def _refresh(self) -> None:
        if self._plain:
            return
        if not self._best:
            self._live.update(self._bars)
            return
        table = Table("", *self._best, box=None, padding=(0, 2))
        for words, values in (("best trial", self._best), ("best of any trial", self._best_of_any)):
            table.add_row(words, *(f"{values[name]:.4g}" if name in values else "" for name in self._best))
        self._live.update(Group(self._bars, table))
