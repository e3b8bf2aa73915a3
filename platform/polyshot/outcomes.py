"""What runs log and under which names: learning curves, final metrics, baselines. The verbs share it.

Curves are `curve/…`, apart from the final values (`val/<task>/<metric>`, `test/…`) that runs are compared by: MLflow's
table shows the last value of a metric, and the last epoch is seldom the one that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyshot.tracking.tracker import Run, Tracker

if TYPE_CHECKING:
    from polyshot.training.baselines import Baseline
    from polyshot.training.loop import Epoch

_SHORT = {"validation": "val", "test": "test"}


def curve(epoch: Epoch) -> dict[str, float]:
    """An epoch's metrics under the names of learning curves."""
    return {f"curve/{name}": value for name, value in epoch.metrics.items()} | {"curve/epoch_seconds": epoch.seconds}


def log_outcome(run: Run, splits: Mapping[str, Mapping[str, float]], improvement: Mapping[str, float]) -> None:
    """The final metrics of a run: `val/<task>/<metric>`, `test/…`, and Δm as `val/improvement`, `test/improvement`."""
    metrics = {f"{_SHORT[split]}/{name}": value for split, values in splits.items() for name, value in values.items()}
    run.log_metrics(metrics | {f"{_SHORT[split]}/improvement": value for split, value in improvement.items()})


def log_baseline(tracker: Tracker, parent: Run, key: str, params: Mapping[str, Any], baseline: Baseline) -> None:
    """One child run for a single-task baseline; the last part of `key` is its name, `params` are what differs."""
    run = tracker.start_run(
        key.rpartition("/")[2], key=key, parent=parent, params=params, tags={"polyshot.kind": "baseline"}
    )
    for epoch in baseline.history:
        run.log_metrics(curve(epoch), step=epoch.number)
    log_outcome(run, {"validation": baseline.validation, "test": baseline.test}, {})
    run.end()
