"""Interactive plots of runs, as `data` and `layout` for plotly.js.

Written as plain values: to load Plotly's Python classes would take longer than most reports. A colour is a name, `@0`
to `@7` of Okabe and Ito's palette or `@text`, `@muted`, `@surface`, with `/0.2` for its opacity; the page gives it a
value that can be seen on light, dark and printed paper. Texts are escaped by the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from polyshot.report.page import Plot
from polyshot.report.words import number, percent, short_names

_STYLES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
_FIXED = (
    *("number", "state", "front", "feasible", "epochs", "labels", "seconds", "start", "copied", "stopped", "error"),
    *("improvement", "worst_improvement", "parameters", "latency_ms", "training_seconds"),
)
_AXIS_WIDTH = 110  # CSS pixels between two axes of parallel coordinates


def _line(x: Iterable[Any], y: Iterable[Any], name: str, colour: str, **more: Any) -> dict[str, Any]:
    line = {"color": colour, "width": 2} | more.pop("line", {})
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "name": name, "line": line} | more


def _band(x: Sequence[Any], low: Sequence[Any], high: Sequence[Any], colour: str, group: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": f"{colour}/0.16",
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
    }


# --- training --------------------------------------------------------------------------------------------------------


def learning_curves(curves: pd.DataFrame, by: str = "epoch") -> list[Plot]:
    """Losses, then each task's validation metric, by epoch; of several seeds, a line each."""
    seeds = [rows for _, rows in curves.groupby("seed", sort=False)] if "seed" in curves else [curves]
    losses = []
    for place, rows in enumerate(seeds):
        for column, name, colour in (("train/loss", "training", "@1"), ("val/loss", "validation", "@0")):
            if column in rows:
                losses.append(_line(rows["epoch"], rows[column], name, colour, showlegend=place == 0, legendgroup=name))
    layout = {"xaxis": {"title": {"text": by}}, "yaxis": {"title": {"text": "loss"}}}
    words = f"Losses by {by}; the validation loss is {number(curves['val/loss'].min())} where it is least."
    plots = [Plot("Loss", words, {"data": losses, "layout": layout}, height=280)]
    for name in map(str, curves):
        if name.startswith("val/") and name != "val/loss":
            metric = name.removeprefix("val/")
            lines = [
                _line(
                    rows["epoch"],
                    rows[name],
                    f"seed {rows['seed'].iloc[0]}" if "seed" in rows else metric,
                    f"@{place % 7}" if len(seeds) > 1 else "@0",
                    showlegend=len(seeds) > 1,
                )
                for place, rows in enumerate(seeds)
            ]
            layout = {"xaxis": {"title": {"text": by}}, "yaxis": {"title": {"text": metric.rpartition("/")[2]}}}
            last = number(float(curves[name].iloc[-1]))
            words = f"{metric} on validation by {by}; {last} at the end."
            plots.append(Plot(f"{metric}, validation", words, {"data": lines, "layout": layout}, height=280))
    return plots


def improvements(metrics: pd.DataFrame) -> Plot:
    """Bars of the improvement over learning alone, per task, with its interval."""
    test = metrics[metrics["split"] == "test"].iloc[::-1]
    values = [100 * value for value in test["improvement"]]
    if "verdict" in test:  # grey is what cannot be told from noise
        colours = [{"helped": "@0", "hurt": "@1"}.get(verdict, "@6") for verdict in test["verdict"]]
    else:
        colours = ["@0" if value >= 0 else "@1" for value in values]
    bar: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": [f"{task} ({metric})" for task, metric in zip(test["task"], test["metric"], strict=True)],
        "marker": {"color": colours},
        "hovertemplate": "%{y}: %{x:+.2f} %<extra></extra>",
    }
    if "low" in test:
        bar["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [100 * high - value for high, value in zip(test["high"], values, strict=True)],
            "arrayminus": [value - 100 * low for low, value in zip(test["low"], values, strict=True)],
            "color": "@text",
            "thickness": 1.5,
            "width": 5,
        }
    layout = {
        "xaxis": {"title": {"text": "improvement, %"}, "zeroline": True, "ticksuffix": " %"},
        "yaxis": {"showline": False, "ticks": ""},
        "bargap": 0.45,
    }
    each = (f"{task} {percent(value)}" for task, value in zip(test["task"], test["improvement"], strict=True))
    caption = "Improvement over learning alone, test" + (", with 95 % intervals" if "low" in test else "")
    words = "Improvement over learning alone: " + ", ".join(each)
    return Plot(caption, words, {"data": [bar], "layout": layout}, height=90 + 44 * len(test))


# --- searches --------------------------------------------------------------------------------------------------------


def searched_keys(trials: pd.DataFrame, objective: str) -> list[str]:
    """The columns that hold what was searched: neither about the trial, nor a metric."""
    return [str(name) for name in trials if name not in (*_FIXED, objective) and "/" not in str(name)]


def search_history(trials: pd.DataFrame, objective: str, direction: str, confirmed: pd.DataFrame | None = None) -> Plot:
    """The objective of each trial in the order of their numbers, and the best of the finished ones so far.

    Args:
        confirmed: the best trials with new seeds (see `searching.confirmation`), where there are any.
    """
    trials = trials.sort_values("number")
    data = []
    for state, symbol, colour in (("finished", "circle", "@0"), ("stopped", "circle-open", "@4")):
        some = trials[trials["state"] == state]
        if len(some):
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{state} ({len(some)})",
                    "x": some["number"].tolist(),
                    "y": some[objective].tolist(),
                    "marker": {"color": colour, "symbol": symbol, "size": 8},
                    "hovertemplate": "trial %{x}: %{y:.4g}<extra></extra>",
                }
            )
    failed = trials[trials["state"] == "failed"]
    if len(failed):
        worst = trials[objective].min() if direction == "maximize" else trials[objective].max()
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"failed ({len(failed)})",
                "x": failed["number"].tolist(),
                "y": [worst] * len(failed),
                "marker": {"color": "@1", "symbol": "x", "size": 8},
                "hovertemplate": "trial %{x} failed<extra></extra>",
            }
        )
    finished = trials[trials["state"] == "finished"]
    if len(finished):
        best = finished[objective].cummax() if direction == "maximize" else finished[objective].cummin()
        x, y = [*finished["number"], trials["number"].iloc[-1]], [*best, best.iloc[-1]]
        data.append(_line(x, y, "best so far", "@0", line={"shape": "hv"}, hoverinfo="skip"))
    if len(again := confirmed_trials(confirmed, objective)):
        data.append(_again(again))
    layout = {"xaxis": {"title": {"text": "trial"}}, "yaxis": {"title": {"text": f"{objective}, validation"}}}
    words = f"{objective} on validation by trial; the best is {number(_best(trials, objective, direction))}."
    return Plot("How the search went", words, {"data": data, "layout": layout})


def confirmed_trials(confirmed: pd.DataFrame | None, objective: str) -> pd.DataFrame:
    """Of a table of `searching.confirmation`, the rows of trials that have an interval of this objective over seeds."""
    if confirmed is None or "validation_low" not in confirmed:  # without the column: of an earlier release
        return pd.DataFrame()
    own = (confirmed["objective"] == objective) & confirmed["candidate"].ne("default")
    return confirmed[own & confirmed["validation_low"].notna()]


def _again(confirmed: pd.DataFrame) -> dict[str, Any]:
    """Trials with new seeds: the mean, and its 95 % interval."""
    mean = confirmed["validation"]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"again with {confirmed['seeds'].iloc[0]} new seeds, mean and 95 % interval",
        "x": confirmed["candidate"].astype(int).tolist(),
        "y": mean.tolist(),
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": (confirmed["validation_high"] - mean).tolist(),
            "arrayminus": (mean - confirmed["validation_low"]).tolist(),
            "color": "@2",
        },
        "marker": {"color": "@2", "symbol": "diamond", "size": 9},
        "hovertemplate": "trial %{x} with new seeds: %{y:.4g}<extra></extra>",
    }


def _best(trials: pd.DataFrame, objective: str, direction: str) -> float:
    return float(trials[objective].max() if direction == "maximize" else trials[objective].min())


def importances(shares: Mapping[str, float]) -> Plot:
    """Bars of the parameters' shares in what made a trial good, the largest on top."""
    names = list(shares)[::-1]
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": [shares[name] for name in names],
        "y": short_names(names),
        "customdata": names,
        "marker": {"color": "@0"},
        "hovertemplate": "%{customdata}: %{x:.2f}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "share"}},
        "yaxis": {"showline": False, "ticks": ""},
        "bargap": 0.35,
    }
    each = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    caption = "Which parameters made trials good (PED-ANOVA)"
    return Plot(caption, f"Importances: {each}.", {"data": [bar], "layout": layout}, height=90 + 30 * len(names))


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers, and not words or yes and no."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _is_log(values: pd.Series) -> bool:
    known = values.dropna()
    return is_number(values) and len(known) > 0 and known.min() > 0 and known.max() / known.min() > 50


def _axis(values: pd.Series) -> dict[str, Any]:
    """What Plotly is to know of an axis of such values."""
    if not is_number(values):
        return {"type": "category"}
    return {"type": "log", "dtick": 1, "exponentformat": "power"} if _is_log(values) else {"type": "linear"}


def slices(trials: pd.DataFrame, keys: Sequence[str], objective: str) -> list[Plot]:
    """For each parameter, the objective of the trials by its value; the best one is a star."""
    valued = trials[trials[objective].notna()]
    plots = []
    for key, name in zip(keys, short_names(keys), strict=True):
        data = []
        for state, symbol, colour in (("finished", "circle", "@0"), ("stopped", "circle-open", "@4")):
            some = valued[(valued["state"] == state) & valued[key].notna()]
            x = some[key].tolist() if is_number(valued[key]) else [str(value) for value in some[key]]
            data.append(_points(x, some[objective].tolist(), some["number"].tolist(), state, symbol, colour))
        best = valued[valued[key].notna()].head(1)  # the best comes first
        x = best[key].tolist() if is_number(valued[key]) else [str(value) for value in best[key]]
        star = _points(x, best[objective].tolist(), best["number"].tolist(), "best", "star", "@1")
        star["marker"]["size"] = 14
        layout: dict[str, Any] = {
            "xaxis": _axis(valued[key]),
            "yaxis": {"title": {"text": objective}},
            "showlegend": False,
        }
        words = f"{objective} by {key}; the best trial has {said(best[key].iloc[0]) if len(best) else 'none'}."
        plots.append(Plot(name, words, {"data": [*data, star], "layout": layout}, height=250))
    return plots


def _points(
    x: Sequence[Any], y: Sequence[Any], trials: Sequence[int], name: str, symbol: str, colour: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "customdata": list(trials),
        "name": name,
        "marker": {"color": colour, "symbol": symbol, "size": 7},
        "hovertemplate": "trial %{customdata}: %{x}, %{y:.4g}<extra></extra>",
    }


def said(value: Any) -> str:
    return number(float(value)) if isinstance(value, float) else str(value)


def parallel_coordinates(trials: pd.DataFrame, keys: Sequence[str], objective: str) -> Plot:
    """A line for each trial through the values that it had, to the objective; the best tenth stands out.

    Drawn as lines, and not as Plotly's own kind of plot: that one needs WebGL, and is neither printed nor read aloud.
    """
    valued = trials[trials[objective].notna()]
    columns = [*keys, objective]
    axes = {name: _heights(valued[name]) for name in columns}
    best = max(1, round(0.1 * len(valued)))
    data = []
    for rows, name, colour, width in (
        (range(best, len(valued)), "other trials", "@muted/0.35", 1.0),
        (range(best), "the best tenth" if best > 1 else "the best trial", "@1", 2.5),
    ):
        x: list[int | None] = []
        y: list[float | None] = []
        texts: list[str | None] = []
        for row in rows:
            trial = valued.iloc[row]
            x += [*range(len(columns)), None]  # None parts it from the next trial's line
            y += [*(axes[column][0][row] for column in columns), None]
            texts += [*(f"trial {trial['number']}: {name} = {said(trial[name])}" for name in columns), None]
        own = _line(x, y, name, colour, line={"width": width}, text=texts, hovertemplate="%{text}<extra></extra>")
        data.append(own | {"mode": "lines+markers", "marker": {"size": 4, "color": colour}})
    annotations = [
        {
            "x": place,
            "y": height,
            "text": text,
            "showarrow": False,
            "xanchor": "left",
            "xshift": 5,
            "font": {"size": 11, "color": "@text"},
            "bgcolor": "@surface/0.7",
        }
        for place, column in enumerate(columns)
        for height, text in axes[column][1]
    ]
    layout = {
        "xaxis": {
            "tickvals": list(range(len(columns))),
            "ticktext": short_names(columns),
            "range": [-0.1, len(columns) - 0.35],
            "showline": False,
            "ticks": "",
            "fixedrange": True,
            "side": "top",
            "gridcolor": "@muted",
            "tickangle": 0 if len(columns) < 6 else -20,
        },
        "yaxis": {"visible": False, "range": [-0.08, 1.08], "fixedrange": True},
        "legend": {"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top"},
        "annotations": annotations,
    }
    words = f"A line per trial through {', '.join(keys)} to {objective}; the tables hold the same values."
    width = _AXIS_WIDTH * len(columns)
    return Plot("Trials as lines through their values", words, {"data": data, "layout": layout}, 420, width)


def _heights(values: pd.Series) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Each value's place on an axis from 0 to 1, and the labels of the axis with theirs."""
    if is_number(values) and values.notna().any():
        low, high = float(values.min()), float(values.max())
        scaled = np.log(values.astype(float)) if _is_log(values) else values.astype(float)
        least, spread = scaled.min(), scaled.max() - scaled.min()
        places = (scaled - least) / spread if spread > 0 else scaled * 0 + 0.5
        ends = [(0.0, number(low)), (1.0, number(high))] if spread > 0 else [(0.5, number(low))]
        return [None if math.isnan(place) else float(place) for place in places], ends
    names = sorted({str(value) for value in values.dropna()})
    steps = {name: place / max(1, len(names) - 1) for place, name in enumerate(names)}
    known = values.notna()
    found = [steps[str(value)] if is_known else None for value, is_known in zip(values, known, strict=True)]
    return found, [(height, name) for name, height in steps.items()]


def two_parameters(trials: pd.DataFrame, first: str, second: str, objective: str) -> Plot:
    """Trials by two parameters, coloured by what they reached."""
    some = trials[trials[objective].notna() & trials[first].notna() & trials[second].notna()]
    points = _points(some[first].tolist(), some[second].tolist(), some["number"].tolist(), "trials", "circle", "@0")
    points["text"] = [number(value) for value in some[objective]]
    points["hovertemplate"] = "trial %{customdata}: %{x:.4g}, %{y:.4g}: %{text}<extra></extra>"
    points["marker"] = {
        "color": some[objective].tolist(),
        "colorscale": "Cividis",
        "size": 11,
        "line": {"color": "@text", "width": 0.5},
        "colorbar": {"title": {"text": objective, "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }
    axes = {name: {"title": {"text": key}} | _axis(some[key]) for name, key in (("xaxis", first), ("yaxis", second))}
    caption = "The two parameters that mattered most"
    words = f"Trials by {first} and {second}, coloured by {objective}; the table of trials holds the values."
    return Plot(caption, words, {"data": [points], "layout": axes}, height=400)


# --- meta-learning, transfer, affinity -------------------------------------------------------------------------------


def adaptation(table: pd.DataFrame) -> Plot:
    """The metric by step of adaptation, with its interval, for each method; a dashed line for one without steps."""
    last, metric = int(table["step"].max()), table["metric"].iloc[0]
    data = []
    for place, (method, rows) in enumerate(table.groupby("method", sort=False)):
        colour, name = f"@{place % 7}", str(method)
        has_steps = len(rows) > 1
        x = rows["step"].tolist() if has_steps else [0, last]
        mean, half = (rows[column].tolist() * (1 if has_steps else 2) for column in ("mean", "interval"))
        if has_steps:  # bands of lines that stay where they are would hide the others; the table has their intervals
            ends = list(zip(mean, half, strict=True))
            data.append(_band(x, [a - b for a, b in ends], [a + b for a, b in ends], colour, name))
        more: dict[str, Any] = {"legendgroup": name, "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>"}
        if has_steps:
            more |= {"mode": "lines+markers", "marker": {"symbol": _SYMBOLS[place % 6], "size": 7, "color": colour}}
        data.append(_line(x, mean, name, colour, line={"dash": "solid" if has_steps else "dash"}, **more))
    steps = {"title": {"text": "steps of adaptation"}} | ({"dtick": 1} if last <= 12 else {})
    layout = {"xaxis": steps, "yaxis": {"title": {"text": metric}}}
    words = f"{metric} on test tasks by the steps of adaptation, for each method."
    return Plot("Adapting to new tasks, mean and 95 % interval", words, {"data": data, "layout": layout}, height=400)


def by_labels(task: str, table: pd.DataFrame, scratch: str) -> Plot:
    """A task's metric on test by the number of labels, with its interval, for each method."""
    metric = table["metric"].iloc[0]
    data = []
    others = [method for method in table["method"].unique() if method != scratch]
    for place, method in enumerate([scratch, *others]):
        rows = table[table["method"] == method].sort_values("labels")
        colour = "@text" if method == scratch else f"@{(place - 1) % 7}"
        marker = {"symbol": _SYMBOLS[place % 6], "size": 8, "color": colour}
        data.append(
            _line(
                rows["labels"] * 1.015 ** (place - len(others) / 2),  # so that intervals do not hide each other
                rows["value"],
                str(method),
                colour,
                mode="lines+markers",
                marker=marker,
                line={"dash": _STYLES[(place - 1) // 7 % 4] if place else "solid"},
                customdata=rows["labels"].tolist(),
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": (rows["high"] - rows["value"]).tolist(),
                    "arrayminus": (rows["value"] - rows["low"]).tolist(),
                    "color": colour,
                    "thickness": 1,
                    "width": 3,
                },
                hovertemplate="%{customdata} labels: %{y:.4g}",
            )
        )
    labels = sorted(table["labels"].unique().tolist())
    layout = {
        "xaxis": {
            "type": "log",
            "title": {"text": "labelled training rows"},
            "tickvals": labels,
            "ticktext": [str(label) for label in labels],
        },
        "yaxis": {"title": {"text": f"{metric}, test"}},
    }
    words = f"{metric} of {task} on test by the number of labelled rows, for each method; the table holds the values."
    return Plot(f"{task}: {metric} by labels, 95 % intervals", words, {"data": data, "layout": layout}, height=420)


def heat_map(matrix: pd.DataFrame, caption: str, *, diverging: bool = True) -> Plot:
    """What each task (row) is to each other one (column)."""
    values = matrix.to_numpy(dtype=float, copy=True)
    np.fill_diagonal(values, np.nan)
    largest = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    names = [str(name) for name in matrix.columns]
    texts = [["" if math.isnan(value) else f"{value:.2g}" for value in row] for row in values]
    data = {
        "type": "heatmap",
        "x": names,
        "y": [str(name) for name in matrix.index],
        "z": values.tolist(),
        "text": texts,
        "texttemplate": "%{text}",
        "zmin": -largest if diverging else 0,
        "zmax": largest,
        "colorscale": [[0, "@1"], [0.5, "@surface"], [1, "@0"]] if diverging else [[0, "@surface"], [1, "@1"]],
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "hovertemplate": "learning %{y} does this for %{x}: %{z:.3g}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
    }
    layout = {
        "xaxis": {"title": {"text": "does this for"}, "showline": False, "ticks": "", "showgrid": False},
        "yaxis": {
            "title": {"text": "learning"},
            "autorange": "reversed",
            "showline": False,
            "ticks": "",
            "showgrid": False,
        },
    }
    size = len(names)
    words = f"{caption}; the table below holds the values."
    spec = {"data": [data], "layout": layout}
    return Plot(
        caption, words, spec, 150 + 46 * size, width=min(150 + 50 * size, 300 + 20 * size), most=340 + 90 * size
    )
