"""Plots of runs as PNG files, drawn with matplotlib without a display."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyshot.report.charts import confirmed_trials
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
    trials: pd.DataFrame,
    objectives: Mapping[str, str],
    importances: Mapping[str, pd.DataFrame],
    responses: pd.DataFrame,
    folder: Path,
    confirmed: pd.DataFrame | None = None,
) -> Iterator[Path]:
    """The history of a search, what was learned of its parameters and the Pareto front, as far as they are; the files.

    Args:
        trials: as `SearchResult.trials`.
        objectives: by name, "maximize" or "minimize".
        importances: by objective (see `searching.importances`).
        responses: of tasks to task weights (see `searching.responses`); empty where there are none.
        confirmed: the best trials with new seeds (see `searching.confirmation`), where there are any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, direction in objectives.items():
        suffix = f"_{name.replace('/', '_')}" if len(objectives) > 1 else ""
        yield search_history(trials, name, direction, folder / f"search_history{suffix}.png", confirmed)
        if name in importances:
            yield parameter_importances(importances[name], folder / f"parameter_importances{suffix}.png")
    if len(responses):
        yield weight_responses(responses, folder / "weight_responses.png")
    if len(objectives) > 1:
        yield pareto_front(trials, list(objectives), folder / "pareto_front.png")


def pareto_front(trials: pd.DataFrame, objectives: Sequence[str], path: Path) -> Path:
    """Each pair of objectives: all trials, those that no other one beats in all objectives, and the chosen one."""
    pairs = list(itertools.combinations(objectives, 2))
    columns = min(len(pairs), 3)
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    front = trials[trials["front"]]
    for axis, (x, y) in zip(axes, pairs, strict=False):
        axis.scatter(trials[x], trials[y], s=16, color="lightgrey", label="trials")
        axis.scatter(front[x], front[y], s=24, color=COLOURS[0], label="Pareto front")
        if len(pairs) == 1 and len(front):
            in_order = front.sort_values(x)
            axis.plot(in_order[x], in_order[y], color=COLOURS[0], linewidth=1)
        axis.scatter(trials[x][:1], trials[y][:1], s=90, facecolors="none", edgecolors=COLOURS[1], label="chosen")
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(pairs) :]:
        axis.set_axis_off()
    axes[0].legend(frameon=False)
    return _save(figure, path)


def search_history(
    trials: pd.DataFrame, objective: str, direction: str, path: Path, confirmed: pd.DataFrame | None = None
) -> Path:
    """The objective of each trial in the order of their numbers, and the best of the finished ones so far.

    Args:
        confirmed: as in `search_figures`.
    """
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
    if len(again := confirmed_trials(confirmed, objective)):
        mean = again["validation"]
        ends = [mean - again["validation_low"], again["validation_high"] - mean]
        words = f"with {again['seeds'].iloc[0]} new seeds, 95 % interval"
        numbers = again["candidate"].astype(int)
        axis.errorbar(numbers, mean, yerr=ends, fmt="D", markersize=5, color=COLOURS[2], capsize=3, label=words)
    labels = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # each once
    axis.legend(labels.values(), labels.keys(), frameon=False)
    axis.set_xlabel("trial")
    axis.set_ylabel(f"{objective} (validation)")
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def parameter_importances(importances: pd.DataFrame, path: Path) -> Path:
    """Bars of the parameters' shares in what made a trial good, by two measures, the most important one on top."""
    figure = Figure(figsize=(6, 0.45 * len(importances) + 1.4), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(importances))
    for offset, name, words, colour in (
        (-0.2, "ped_anova", "among the best trials (PED-ANOVA)", COLOURS[0]),
        (0.2, "fanova", "over the whole space (fANOVA)", COLOURS[5]),
    ):
        axis.barh(places + offset, importances[name].fillna(0), height=0.38, color=colour, label=words)
    axis.set_yticks(places, [str(name) for name in importances.index])
    axis.invert_yaxis()
    axis.set_xlabel("importance (shares of 1)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def weight_responses(responses: pd.DataFrame, path: Path) -> Path:
    """Of each task its metric by each task's weight, as a search's trials tell it; shaded where they tell little."""
    tasks = list(responses.groupby(["task", "metric"], sort=False))
    columns = min(len(tasks), 3)
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, ((task, metric), own) in zip(axes, tasks, strict=False):
        for (of, curve), colour in zip(own.groupby("weight_of", sort=False), itertools.cycle(COLOURS)):
            axis.plot(curve["weight"], curve["value"], color=colour, label=of, linewidth=2 if of == task else 1)
            axis.fill_between(curve["weight"], curve["low"], curve["high"], color=colour, alpha=0.12, linewidth=0)
        axis.set_title(f"{task}/{metric}", loc="left")
        axis.set_xlabel("weight")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(tasks) :]:
        axis.set_axis_off()
    axes[0].legend(frameon=False, title="weight of")
    return _save(figure, path)


def confirmation(table: pd.DataFrame, name: str, path: Path) -> Path:
    """Differences of trials from the study's own values with new seeds, with their intervals (see
    `searching.confirmation`)."""
    trials = table[(table["objective"] == name) & table["difference"].notna()]
    figure = Figure(figsize=(6, 0.4 * len(trials) + 1.2), layout="constrained")
    axis = figure.subplots()
    ends = [(trials["difference"] - trials["low"]).fillna(0), (trials["high"] - trials["difference"]).fillna(0)]
    axis.errorbar(trials["difference"], range(len(trials)), xerr=ends, fmt="o", color=COLOURS[0], capsize=3)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(trials)), [f"trial {candidate}" for candidate in trials["candidate"]])
    axis.invert_yaxis()
    axis.set_xlabel(f"{name} on test, better than the study's own values by (95 % interval over seeds)")
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
