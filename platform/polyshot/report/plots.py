"""Plots of runs as PNG files, drawn with matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
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


def search_figures(
    trials: pd.DataFrame, objective: str, direction: str, importances: Mapping[str, float], folder: Path
) -> Iterator[Path]:
    """The history of a search and, where they are known, the parameters' importances; yields the files.

    Args:
        trials: as `SearchResult.trials`.
        direction: "maximize" or "minimize".
    """
    folder.mkdir(parents=True, exist_ok=True)
    yield search_history(trials, objective, direction, folder / "search_history.png")
    if importances:
        yield parameter_importances(importances, folder / "parameter_importances.png")


def search_history(trials: pd.DataFrame, objective: str, direction: str, path: Path) -> Path:
    """The objective of each trial in the order of their numbers, and the best of the finished ones so far."""
    trials = trials.sort_values("number")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    for state, colour, face in (("finished", COLOURS[0], COLOURS[0]), ("stopped", COLOURS[4], "none")):
        some = trials[trials["state"] == state]
        if len(some):
            axis.scatter(some["number"], some[objective], s=24, edgecolors=colour, facecolors=face, label=state)
    for number in trials.loc[trials["state"] == "failed", "number"]:
        axis.axvline(number, color=COLOURS[1], linewidth=1, linestyle=":", label="failed")
    finished = trials[trials["state"] == "finished"]
    if len(finished):
        best = finished[objective].cummax() if direction == "maximize" else finished[objective].cummin()
        axis.step(finished["number"], best, where="post", color=COLOURS[0], linewidth=1, label="best so far")
    labels = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # each once
    axis.legend(labels.values(), labels.keys(), frameon=False)
    axis.set_xlabel("trial")
    axis.set_ylabel(f"{objective} (validation)")
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def parameter_importances(importances: Mapping[str, float], path: Path) -> Path:
    """Bars of the parameters' shares in what made a trial good, the most important one on top."""
    figure = Figure(figsize=(6, 0.35 * len(importances) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.barh(list(importances), list(importances.values()), color=COLOURS[0])
    axis.invert_yaxis()
    axis.set_xlabel("importance (PED-ANOVA, shares of 1)")
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


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
    words = "improvement over learning alone, % (test)"
    if "verdict" in test:
        axis.errorbar(
            percent,
            range(len(test)),
            xerr=[(percent - 100 * test["low"]).clip(0), (100 * test["high"] - percent).clip(0)],
            fmt="none",
            ecolor="black",
            elinewidth=1,
            capsize=3,
        )
        words += ", 95 % interval"
    axis.axvline(0, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel(words)
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def affinity_heat_map(matrix: pd.DataFrame, words: str, folder: Path) -> Path:
    """What each task (row) is to each other one (column), blue where it helps and red where it harms.

    Args:
        words: what the numbers are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = matrix.to_numpy(dtype=float, copy=True)
    np.fill_diagonal(values, np.nan)  # a task itself would set the scale
    largest = np.nanmax(np.abs(values), initial=0) or 1.0
    size = 0.7 * len(matrix) + 1.5
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest)  # ColorBrewer's, for the colour-blind as well
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        value = values[row, column]
        light = abs(value) > 0.6 * largest
        axis.text(
            column, row, f"{value:.2g}", ha="center", va="center", fontsize=8, color="white" if light else "black"
        )
    axis.set_xticks(range(len(matrix)), matrix.columns, rotation=45, ha="right")
    axis.set_yticks(range(len(matrix)), matrix.index)
    axis.set_xlabel("does this for")
    axis.set_ylabel("learning")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figure.colorbar(image, ax=axis, shrink=0.8, label=words).outline.set_visible(False)
    return _save(figure, folder / "affinity.png")


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(path)
    return path
