"""Plots of meta-learning as PNG files, drawn with matplotlib without a display."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyshot.report.plots import COLOURS


def adaptation_curves(table: pd.DataFrame, path: Path) -> Path:
    """The metric by step with its interval for each method that takes steps, and a line for each that does not.

    Args:
        table: as `MetaResult.table`.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    last = int(table["step"].max())
    for colour, (method, rows) in zip(COLOURS, table.groupby("method", sort=False), strict=False):
        if len(rows) > 1:
            axis.plot(rows["step"], rows["mean"], color=colour, label=method, marker="o", markersize=3)
            low, high = rows["mean"] - rows["interval"], rows["mean"] + rows["interval"]
            axis.fill_between(rows["step"], low, high, color=colour, alpha=0.2, linewidth=0)
        else:
            mean, interval = rows["mean"].iloc[0], rows["interval"].iloc[0]
            axis.axhline(mean, color=colour, label=method, linestyle="--", linewidth=1)
            axis.fill_between([0, last], mean - interval, mean + interval, color=colour, alpha=0.1, linewidth=0)
    axis.set_xlabel("steps of adaptation")
    axis.set_ylabel(f"{table['metric'].iloc[0]} (test tasks, mean ± 95 %)")
    axis.legend(frameon=False, fontsize="small")
    axis.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(path)
    return path
