"""How a multi-task model compares with its single-task baselines: one table, used by every verb, table and report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from polyshot.study import Study
from polyshot.training.bootstrap import CONFIDENCE, Interval, Intervals, Verdict
from polyshot.training.improvement import relative_improvement

Metrics = Mapping[str, float]  # task/metric → value
SPLITS = ("validation", "test")
MODELS = ("single_task", "single_task_tuned", "multi_task")


def comparison(
    study: Study, models: Mapping[str, Mapping[str, Metrics]], intervals: Mapping[str, Intervals] | None = None
) -> pd.DataFrame:
    """One row per split and task for the chosen metric of each task.

    Args:
        models: the metrics on "validation" and "test" of each model: any of "single_task" (the study's own settings)
            and "single_task_tuned" (the settings of a search's best trial), and, last, "multi_task".
        intervals: of the improvements, by split; given where there are single-task models.

    Returns:
        Columns split, task, metric, one per model, and `improvement`: of multi_task over the single-task column before
        it, as a fraction, positive when better; with its 95 % interval `low` to `high` and the `verdict` on the task:
        helped, hurt, within noise or, where there is no interval, unknown. Without single-task models there are no such
        columns.
    """
    *baselines, multi_task = models
    rows = []
    for split in SPLITS:
        for task, settings in study.tasks.items():
            values = {model: metrics[split][f"{task}/{settings.metric}"] for model, metrics in models.items()}
            row = {"split": split, "task": task, "metric": settings.metric, **values}
            if baselines:
                row["improvement"] = relative_improvement(settings.metric, values[multi_task], values[baselines[-1]])
            if intervals:
                interval = intervals[split].tasks[task]
                row |= {"low": interval.low, "high": interval.high, "verdict": interval.verdict}
            rows.append(row)
    return pd.DataFrame(rows)


def across_seeds(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, Intervals]]:
    """Several seeds' tables of `comparison` as one: means over seeds, and intervals of the improvements by split.

    An interval is Student's t interval of the mean improvement, the seeds being independent: mean ± t s / √S. It is
    about training, initialisation and batches above all, on these very splits; a seed's own interval is about rows.

    Returns:
        The columns of `comparison`, and `first_seed`, the verdict that the first seed alone gives. Without single-task
        models there is no interval.
    """
    first = tables[0]
    table = first.copy()
    numbers = [name for name in first if name in (*MODELS, "improvement")]
    table[numbers] = np.mean([of_seed[numbers].to_numpy(dtype=np.float64) for of_seed in tables], axis=0)
    if "verdict" not in first:
        return table, {}
    each = [t_interval(values) for values in np.transpose([t["improvement"].to_numpy(np.float64) for t in tables])]
    table["low"], table["high"] = zip(*(interval.ends for interval in each), strict=True)
    table["verdict"], table["first_seed"] = [interval.verdict for interval in each], first["verdict"]
    intervals = {}
    for split, rows in _rows(first):
        tasks = {first.loc[row, "task"]: each[row] for row in rows}
        intervals[split] = Intervals(tasks, t_interval([delta_m(of_seed, split) for of_seed in tables]))
    return table, intervals


def t_interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The 95 % interval of the mean of independent `values`; NaN where one is, or where there is one only."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return Interval(float(np.mean(values)) - half, float(np.mean(values)) + half)


def chosen_values(table: pd.DataFrame, model: str = "multi_task") -> dict[str, dict[str, float]]:
    """A model's values in a table of `comparison`, by split and `task/metric`."""
    names = table["task"] + "/" + table["metric"]
    return {split: dict(zip(names[rows], table.loc[rows, model], strict=True)) for split, rows in _rows(table)}


def _rows(table: pd.DataFrame) -> Iterator[tuple[str, pd.Index]]:
    """The rows of each split."""
    for split in SPLITS:
        yield split, table.index[table["split"] == split]


def tasks_by_verdict(table: pd.DataFrame, verdict: Verdict, split: str = "test") -> list[str]:
    """The tasks with this verdict on `split`, the one with the least improvement first."""
    if "verdict" not in table:
        return []
    chosen = table[(table["split"] == split) & (table["verdict"] == verdict)]
    return chosen.sort_values("improvement")["task"].tolist()


def percent(fraction: float) -> str:
    """`+1.25 %`; a dash where there is none."""
    return "–" if fraction != fraction else f"{100 * fraction:+z.2f} %"


def verdict_words(
    table: pd.DataFrame, improvement: float, interval: tuple[float, float], drawn: str = "test rows"
) -> Iterator[str]:
    """Δm, and of each task whether learning together helped or hurt it, or cannot be told; a sentence each.

    Args:
        table: of `comparison`, or of `across_seeds`.
        drawn: what the interval is over, in words.
    """
    if improvement != improvement:
        return
    low, high = interval
    over = f" (95 % interval {percent(low)} to {percent(high)}, over {drawn})" if low == low else ""
    yield f"Δm on test: {percent(improvement)} over learning each task alone{over}."
    sentences = {
        "Better than alone": tasks_by_verdict(table, "helped")[::-1],
        "Worse than alone (negative transfer)": hurt_tasks(table),
        "Neither, within noise": tasks_by_verdict(table, "within noise"),
        "Too few test rows to tell": tasks_by_verdict(table, "unknown"),
    }
    yield from (f"{words}: {', '.join(tasks)}." for words, tasks in sentences.items() if tasks)


def hurt_tasks(table: pd.DataFrame) -> list[str]:
    """The tasks that learning together made worse on test than learning alone (negative transfer), worst first.

    Those whose loss is within the noise of the test rows are not among them.
    """
    return tasks_by_verdict(table, "hurt")


def delta_m(table: pd.DataFrame, split: str) -> float:
    """Δm on `split`: the mean improvement over tasks, as a fraction; NaN without baselines."""
    if "improvement" not in table:
        return float("nan")
    return float(table.loc[table["split"] == split, "improvement"].mean(skipna=False))
