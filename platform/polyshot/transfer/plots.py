"""Plots of transfer as PNG files, drawn with matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyshot.report.plots import COLOURS
from polyshot.study.transfer import SCRATCH

_STYLES = ("-", "--", ":", "-.")  # one for each time that the colours are gone through


def metric_by_labels(table: pd.DataFrame, folder: Path) -> Iterator[Path]:
    """For each task, the metric of each method by the number of labels, with its interval; yields the files.

    Args:
        table: as `verdict.comparison`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in table.groupby("task", sort=False):
        yield _of_task(str(task), rows, folder / f"labels-{task}.png")


def _of_task(task: str, table: pd.DataFrame, path: Path) -> Path:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    others = [method for method in table["method"].unique() if method != SCRATCH]
    looks = {method: (COLOURS[n % 7], _STYLES[n // 7 % 4]) for n, method in enumerate(others)} | {
        SCRATCH: ("black", "-")
    }
    methods = len(looks)
    for place, (method, (colour, style)) in enumerate(looks.items()):
        rows = table[table["method"] == method].sort_values("labels")
        apart = 1.02 ** (place - (methods - 1) / 2)  # so that intervals do not hide each other
        axis.errorbar(
            rows["labels"] * apart,
            rows["value"],
            yerr=[(rows["value"] - rows["low"]).clip(0), (rows["high"] - rows["value"]).clip(0)],
            color=colour,
            linestyle=style,
            marker="o",
            markersize=3,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            label=method,
        )
    axis.set_xscale("log")
    labels = sorted(table["labels"].unique())
    axis.set_xticks(labels, [str(number) for number in labels])
    axis.minorticks_off()
    axis.set_xlabel("labelled training rows")
    axis.set_ylabel(f"{task}: {table['metric'].iloc[0]} (test, 95 % interval)")
    axis.legend(frameon=False, fontsize="small")
    axis.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(path)
    return path
