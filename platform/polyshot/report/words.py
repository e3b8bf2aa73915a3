"""Outcomes in sentences, for reports: figures as they are read, lists as they are said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd


def percent(fraction: float | None) -> str:
    """`+1.23 %`, or a dash where there is no figure."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:+z.2f} %".replace("-", "−")


def number(value: float | None) -> str:
    """Four digits (more before the point), or a dash where there is no figure."""
    if value is None or math.isnan(value):
        return "–"
    return (f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}").replace("-", "−")


def interval(low: float | None, high: float | None, written: type[float] | None = None) -> str:
    """`low to high`, as fractions in percent, or as they are where `written` is float."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "–"
    say = number if written is float else percent
    return f"{say(low)} to {say(high)}"


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def counted(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short_names(names: Iterable[object]) -> list[str]:
    """Each dotted key by its last parts, as many as tell it from the others: `read.weight`, `learning_rate`."""
    parts = [str(name).split(".") for name in names]
    return [
        next(
            ".".join(own[-length:])
            for length in range(1, len(own) + 1)
            if sum(other[-length:] == own[-length:] for other in parts) == 1 or length == len(own)
        )
        for own in parts
    ]


def by_verdict(table: pd.DataFrame) -> dict[str, list[str]]:
    """The tasks on test by their verdict, the most improved one first."""
    if "verdict" not in table:
        return {}
    test = table[table["split"] == "test"].sort_values("improvement", ascending=False)
    return {str(verdict): rows["task"].tolist() for verdict, rows in test.groupby("verdict", sort=False)}


def sharing_verdict(verdicts: dict[str, list[str]]) -> str:
    """What learning together was worth, in one sentence."""
    helped, hurt = verdicts.get("helped", []), verdicts.get("hurt", [])
    if helped and hurt:
        return f"Learning together helped {listed(helped)} and hurt {listed(hurt)}."
    if helped:
        others = " and hurt none" if sum(map(len, verdicts.values())) > len(helped) else ""
        return f"Learning together helped {listed(helped)}{others}."
    if hurt:
        return f"Learning together hurt {listed(hurt)} and helped none: negative transfer."
    return "Learning together made no difference that can be told from noise."


def tone_of(good: Sequence[object], bad: Sequence[object]) -> str:
    if good and bad:
        return "mixed"
    return "good" if good else "bad" if bad else "neutral"
