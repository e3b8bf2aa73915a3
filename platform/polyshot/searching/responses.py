"""Which task weights helped which task: each task's metric along the simplex of task weights, from a search's trials.

Called when a search over task weights has ended. A random forest learns the metric from all that was searched; its
partial dependence (Friedman, "Greedy Function Approximation", 2001) is taken along the line on which one task's weight
goes from 0 to 1 while the others keep their proportions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_FEWEST = 20  # trials that a forest can learn anything from
_TREES = 100
_WEIGHTS = np.linspace(0, 1, 21)


def weight_responses(trials: pd.DataFrame, metrics: Mapping[str, str], seed: int) -> pd.DataFrame:
    """Rows of `weight_of` (a task), its `weight`, a `task` with its `metric`, and the `value` there, `low` to `high`.

    The ends hold the middle 95 % of the forest's trees: they tell where trials say little, and are no confidence
    interval. Without twenty trials of different task weights there are no rows.

    Args:
        trials: as `searching.sweep.trials_table`.
        metrics: by task, its metric.
    """
    columns = [f"tasks.{task}.weight" for task in metrics]
    wanted = [f"{task}/{metric}" for task, metric in metrics.items()]
    if not set(columns + wanted) <= set(trials):
        return pd.DataFrame()
    known = trials.dropna(subset=columns + wanted)
    if len(known) < _FEWEST or len(metrics) < 2:
        return pd.DataFrame()
    weights = known[columns].to_numpy(np.float64)
    weights = weights / weights.sum(1, keepdims=True)
    others = _encoded(known[[name for name in map(str, known) if "." in name and name not in columns]])
    # Every point of every line, for every trial: [T · W · N] rows.
    lines = [np.hstack([moved(weights, place, weight), others]) for place in range(len(metrics)) for weight in _WEIGHTS]
    rows = []
    for task, metric in metrics.items():
        inputs, values = np.hstack([weights, others]), known[f"{task}/{metric}"].to_numpy(np.float64)
        means = _means(inputs, values, np.vstack(lines), len(lines), seed)
        points = [(of, weight) for of in metrics for weight in _WEIGHTS]
        for (of, weight), trees in zip(points, means.T, strict=True):
            low, high = np.quantile(trees, [0.025, 0.975])
            point = {"weight_of": of, "weight": weight, "task": task, "metric": metric}
            rows.append(point | {"value": trees.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def moved(weights: NDArray[np.float64], place: int, weight: float) -> NDArray[np.float64]:
    """Points [N, T] of the simplex with coordinate `place` set to `weight`; the others keep their proportions."""
    rest = weights.copy()
    rest[:, place] = 0
    totals = rest.sum(1, keepdims=True)
    tasks = weights.shape[1]
    equal = np.full_like(rest, 1 / (tasks - 1))
    equal[:, place] = 0
    shares = np.where(totals > 0, rest / np.where(totals > 0, totals, 1), equal)
    found = shares * (1 - weight)
    found[:, place] = weight
    return found


def _means(
    inputs: NDArray[np.float64], values: NDArray[np.float64], lines: NDArray[np.float64], points: int, seed: int
) -> NDArray[np.float64]:
    """[trees, points]: what each tree of a forest of `inputs` and `values` predicts for each of so many equal parts."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(_TREES, min_samples_leaf=3, random_state=seed % 2**32).fit(inputs, values)
    return np.array([tree.predict(lines).reshape(points, -1).mean(1) for tree in forest.estimators_])


def _encoded(values: pd.DataFrame) -> NDArray[np.float64]:
    """Whatever else was searched, as numbers: words by their code, what is missing as -1."""
    numbers = values.apply(lambda column: column if column.dtype.kind in "iuf" else pd.factorize(column.astype(str))[0])
    return numbers.fillna(-1).to_numpy(np.float64)
