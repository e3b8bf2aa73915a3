"""How a multi-task model compares with its single-task baselines: one table, used by every verb, table and report."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from polyshot.study import Study
from polyshot.training.bootstrap import Intervals, Verdict
from polyshot.training.improvement import relative_improvement

Metrics = Mapping[str, float]  # task/metric → value
SPLITS = ("validation", "test")


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


def tasks_by_verdict(table: pd.DataFrame, verdict: Verdict, split: str = "test") -> list[str]:
    """The tasks with this verdict on `split`, the one with the least improvement first."""
    if "verdict" not in table:
        return []
    chosen = table[(table["split"] == split) & (table["verdict"] == verdict)]
    return chosen.sort_values("improvement")["task"].tolist()


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
