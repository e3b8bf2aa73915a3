"""`polyshot train`: one multi-task model and its single-task baselines, with the improvement per task.

A run that one process can do is trained in this one; more workers (or `scale.engine: ray`) go through Ray Train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyshot.outcomes import curve, log_baseline, log_outcome, log_verdicts
from polyshot.progress import SILENT, Progress
from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker
from polyshot.verbs.recording import Recording, recorded

# Heavy modules are imported inside the functions: the tracker's writer process starts first and loads MLflow meanwhile.
if TYPE_CHECKING:
    import pandas as pd

    from polyshot.data.prepare import Prepared
    from polyshot.saved_model import SavedModel
    from polyshot.training.loop import Epoch, TrainingRun


@dataclass(frozen=True)
class TrainResult:
    """What a training run gave.

    Attributes:
        metrics: one row per split and task: multi_task, single_task, the improvement, its interval and the verdict (see
            `results.comparison`).
        improvement: Δm on the test split as a fraction; NaN without baselines.
        interval: its 95 % interval over test rows (see `training.bootstrap`); NaN without baselines.
        hurt: tasks that are worse on test than alone beyond noise, worst first.
        curves: one row per epoch of the multi-task model.
        folder: the run's folder, which holds the model.
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
    """

    metrics: pd.DataFrame
    improvement: float
    interval: tuple[float, float]
    hurt: list[str]
    curves: pd.DataFrame
    folder: Path
    mlflow_id: str | None

    @property
    def model(self) -> SavedModel:
        from polyshot.saved_model import SavedModel

        return SavedModel.load(self.folder / "model")


def train(
    study: Study,
    *,
    table: pd.DataFrame | None = None,
    baselines: bool = True,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train the study's multi-task model, and each task alone for comparison.

    An interrupted run of the same study goes on from its last checkpoint.

    Args:
        table: the rows to learn from, in place of `data.source`.
        baselines: also train each task alone under the same budget (from the cache where that was done before).
        fresh: start anew even where an interrupted run could go on.

    Raises:
        PolyshotError: for data that cannot be learnt from, a tracking store that cannot be used, too few CPUs, a
            training that diverges.
    """
    with Tracker.open(study) as tracker, ExitStack() as resources:
        from polyshot.data.prepare import prepare
        from polyshot.training.baselines import SECTIONS
        from polyshot.training.loop import TrainingRun
        from polyshot.training.threads import use_threads

        prepared = prepare(study, table)
        for note in (*prepared.notes, tracker.store.words):
            progress.note(note)
        use_threads(study, prepared)
        # Built before anything is written: what cannot be trained leaves no run behind.
        run = TrainingRun(study, prepared)
        if not _fits_this_process(study):
            from polyshot.cluster.ray import ray_session
            from polyshot.training.distributed import check_resources

            resources.enter_context(ray_session(study))
            check_resources(study)
        with recorded(tracker, study, "train", study.digest(*SECTIONS), fresh=fresh) as recording:
            result = _train(run, prepared, baselines, recording, progress)
    mlflow_id = recording.settle(progress)
    recording.folder.close("finished")
    return TrainResult(**result, folder=recording.folder.path, mlflow_id=mlflow_id)


def _train(
    run: TrainingRun, prepared: Prepared, with_baselines: bool, recording: Recording, progress: Progress
) -> dict[str, Any]:
    import pandas as pd

    from polyshot.report import plots
    from polyshot.results import comparison, delta_m, hurt_tasks
    from polyshot.saved_model import save_model
    from polyshot.training.baselines import Baseline, merged, train_baselines
    from polyshot.training.bootstrap import improvement_intervals

    study, folder, parent = run.study, recording.folder, recording.run
    models = {}
    alone: dict[str, Baseline] = {}
    if with_baselines:
        alone = train_baselines(study, prepared, study.storage_folder / "baselines", progress)
        for baseline in alone.values():
            differences = study.differences(study.single_task(baseline.task))
            log_baseline(recording.tracker, parent, f"{folder.key}/baseline-{baseline.task}", differences, baseline)
        models["single_task"] = merged(alone)
    _fit(run, prepared, folder.path, parent, progress)
    models["multi_task"] = {"validation": run.evaluate(prepared.validation), "test": run.evaluate(prepared.test)}

    intervals = improvement_intervals(study, prepared, run, alone) if alone else None
    metrics = comparison(study, models, intervals)
    log_outcome(parent, models["multi_task"], {split: delta_m(metrics, split) for split in ("validation", "test")})
    if intervals:
        log_verdicts(parent, metrics, intervals)
    save_model(folder.path / "model", study, prepared, run)
    metrics.to_json(folder.path / "metrics.json", orient="records", indent=2)
    if study.tracking.models:
        parent.log_model(folder.path / "model")
    parent.log_artifact(folder.path / "metrics.json")
    for figure in plots.train_figures(run.history, metrics, folder.path / "plots"):
        parent.log_artifact(figure, "plots")
    return {
        "metrics": metrics,
        "improvement": delta_m(metrics, "test"),
        "interval": intervals["test"].delta_m.ends if intervals else (math.nan, math.nan),
        "hurt": hurt_tasks(metrics),
        "curves": pd.DataFrame([{"epoch": epoch.number, **epoch.metrics} for epoch in run.history]),
    }


def _fits_this_process(study: Study) -> bool:
    return study.scale.workers == 1 and study.scale.engine != "ray"


def _fit(run: TrainingRun, prepared: Prepared, folder: Path, parent: Run, progress: Progress) -> None:
    """Train, here or under Ray Train, from the last checkpoint where there is one."""
    activity = "multi-task model"
    progress.start(activity, run.study.training.epochs)

    def on_epoch(epoch: Epoch) -> None:
        parent.log_metrics(curve(epoch), step=epoch.number)
        progress.advance(activity, epoch.number, f"validation loss {epoch.metrics['val/loss']:.4g}")

    if _fits_this_process(run.study):
        _fit_here(run, folder / "checkpoint.pt", on_epoch)
    else:
        from polyshot.training.distributed import train_distributed

        run.load_state_dict(train_distributed(run.study, prepared.for_training(), folder, on_epoch=on_epoch))
    progress.finish(activity, f"best epoch {run.best.number}" if run.best else "")


def _fit_here(run: TrainingRun, checkpoint: Path, on_epoch: Callable[[Epoch], None]) -> None:
    from polyshot.training.checkpoint import load_checkpoint, save_checkpoint

    state = load_checkpoint(checkpoint, run.device)
    if state is not None:
        run.load_state_dict(state)
    saved = time.monotonic()
    for epoch in run.epochs():
        on_epoch(epoch)
        if time.monotonic() - saved >= run.study.training.checkpoint_seconds:
            save_checkpoint(run.state_dict(), checkpoint)
            saved = time.monotonic()
    save_checkpoint(run.state_dict(), checkpoint)
