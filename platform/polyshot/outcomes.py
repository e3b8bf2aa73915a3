"""What runs log and under which names: learning curves, final metrics, baselines. The verbs share it.

Curves are `progress/…`, apart from the final values (`val/<task>/<metric>`, `test/…`) that runs are compared by:
MLflow's table shows the last value of a metric, and the last epoch is seldom the one that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyshot.tracking.tracker import Run, Tracker

if TYPE_CHECKING:
    import pandas as pd

    from polyshot.training.baselines import Baseline
    from polyshot.training.bootstrap import Intervals
    from polyshot.training.loop import Epoch

_SHORT = {"validation": "val", "test": "test"}


def curve(epoch: Epoch) -> dict[str, float]:
    """An epoch's metrics under the names of learning curves."""
    metrics = epoch.metrics | {"epoch_seconds": epoch.seconds}
    return {f"progress/{name}": value for name, value in metrics.items()}


def log_outcome(run: Run, splits: Mapping[str, Mapping[str, float]], improvement: Mapping[str, float]) -> None:
    """The final metrics of a run: `val/<task>/<metric>`, `test/…`, and Δm as `val/improvement`, `test/improvement`."""
    metrics = {f"{_SHORT[split]}/{name}": value for split, values in splits.items() for name, value in values.items()}
    run.log_metrics(metrics | {f"{_SHORT[split]}/improvement": value for split, value in improvement.items()})


def log_verdicts(run: Run, comparison: pd.DataFrame, intervals: Mapping[str, Intervals]) -> None:
    """Each task's improvement, `test/<task>/improvement` (`val/…`), and the ends of its interval (`…_low`, `…_high`).

    The ends of Δm are `test/improvement_low` and `…_high`; the verdicts on test are tags, `verdict.<task>`.
    """
    metrics: dict[str, float] = {}
    for row in comparison.to_dict(orient="records"):
        name = f"{_SHORT[row['split']]}/{row['task']}/improvement"
        metrics |= {name: row["improvement"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    for split, interval in intervals.items():
        name = f"{_SHORT[split]}/improvement"
        metrics |= {f"{name}_low": interval.delta_m.low, f"{name}_high": interval.delta_m.high}
    run.log_metrics(metrics)
    run.set_tags({f"verdict.{task}": interval.verdict for task, interval in intervals["test"].tasks.items()})


def log_baseline(tracker: Tracker, parent: Run, key: str, params: Mapping[str, Any], baseline: Baseline) -> None:
    """One child run for a single-task baseline; the last part of `key` is its name, `params` are what differs.

    It lasts as long as the training did, which may be of an earlier command.
    """
    run = tracker.start_run(
        key.rpartition("/")[2],
        key=key,
        parent=parent,
        params=params,
        tags={"polyshot.kind": "baseline"},
        began=time.time() - sum(epoch.seconds for epoch in baseline.history),
    )
    for epoch in baseline.history:
        run.log_metrics(curve(epoch), step=epoch.number)
    log_outcome(run, {"validation": baseline.validation, "test": baseline.test}, {})
    run.end()
