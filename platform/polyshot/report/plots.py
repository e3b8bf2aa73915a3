"""Plots of runs as PNG files, drawn with matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyshot.training.loop import Epoch

# Okabe and Ito's palette: told apart by colour-blind readers as well.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]


def train_figures(history: Sequence[Epoch], metrics: pd.DataFrame, folder: Path) -> Iterator[Path]:
    """Learning curves and, where there are baselines, the improvement per task; yields the files."""
    folder.mkdir(parents=True, exist_ok=True)
    yield learning_curves(history, folder / "learning_curves.png")
    if "improvement" in metrics:
        yield improvement_per_task(metrics, folder / "improvement.png")


def learning_curves(history: Sequence[Epoch], path: Path) -> Path:
    """Training and validation loss, and each task's validation metric, by epoch."""
    names = [name for name in history[0].metrics if name.startswith("val/") and name != "val/loss"]
    figure = Figure(figsize=(4 * (len(names) + 1), 3), layout="constrained")
    axes = figure.subplots(1, len(names) + 1, squeeze=False)[0]
    epochs = [epoch.number for epoch in history]
    best = max((epoch.number for epoch in history if epoch.is_best), default=None)
    for name, colour in (("train/loss", COLOURS[1]), ("val/loss", COLOURS[0])):
        axes[0].plot(epochs, [epoch.metrics[name] for epoch in history], color=colour, label=name)
    axes[0].legend(frameon=False)
    axes[0].set_title("loss", loc="left")
    for axis, name in zip(axes[1:], names, strict=True):
        axis.plot(epochs, [epoch.metrics[name] for epoch in history], color=COLOURS[0])
        axis.set_title(name, loc="left")
    for axis in axes:
        if best is not None:
            axis.axvline(best, color="grey", linewidth=1, linestyle=":")
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def improvement_per_task(metrics: pd.DataFrame, path: Path) -> Path:
    """Bars of the improvement over the single-task baseline, per task, on test."""
    test = metrics[metrics["split"] == "test"]
    figure = Figure(figsize=(6, 0.4 * len(test) + 1.2), layout="constrained")
    axis = figure.subplots()
    percent = 100 * test["improvement"]
    axis.barh(
        test["task"] + " (" + test["metric"] + ")",
        percent,
        color=[COLOURS[0] if p >= 0 else COLOURS[1] for p in percent],
    )
    axis.axvline(0, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel("improvement over learning alone, % (test)")
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(path)
    return path
