"""`polyshot train`: one multi-task model and its single-task baselines, with the improvement per task.

A run that one process can do is trained in this one; more workers (or `scale.engine: ray`) go through Ray Train.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyshot.progress import SILENT, Progress
from polyshot.run_folder import RunFolder
from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker

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
        metrics: one row per split and task: multi_task, single_task and the improvement (see `results.comparison`).
        improvement: Δm on the test split as a fraction; NaN without baselines.
        hurt: tasks that are worse on test than alone, worst first.
        curves: one row per epoch of the multi-task model.
        folder: the run's folder, which holds the model.
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
    """

    metrics: pd.DataFrame
    improvement: float
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
    with Tracker.open(study) as tracker:
        from polyshot.data.prepare import prepare
        from polyshot.training.baselines import SECTIONS

        prepared = prepare(study, table)
        for note in prepared.notes:
            progress.note(note)
        folder = RunFolder.open(study, "train", study.digest(*SECTIONS), fresh=fresh)
        parent = tracker.start_run(
            folder.key, key=folder.key, params=study.flat(), tags={"polyshot.kind": "train", "polyshot.study": study.name}
        )
        try:
            result = _train(study, prepared, baselines, folder, parent, tracker, progress)
        except KeyboardInterrupt:
            parent.end("KILLED")
            raise
        except BaseException:
            parent.end("FAILED")
            folder.close("failed")
            raise
        parent.end()
    if (kept := tracker.close()) is not None:
        progress.note(str(kept))
    folder.state["mlflow_id"] = tracker.mlflow_id(parent)
    folder.close("finished")
    return TrainResult(**result, folder=folder.path, mlflow_id=folder.state["mlflow_id"])


def _train(
    study: Study,
    prepared: Prepared,
    with_baselines: bool,
    folder: RunFolder,
    parent: Run,
    tracker: Tracker,
    progress: Progress,
) -> dict:
    import pandas as pd

    from polyshot.report import plots
    from polyshot.results import comparison, delta_m, hurt_tasks
    from polyshot.saved_model import save_model
    from polyshot.training.baselines import train_baselines

    parent.log_artifact(folder.path / "study.yaml")
    alone = train_baselines(study, prepared, study.storage_folder / "baselines", progress) if with_baselines else {}
    for baseline in alone.values():
        log_baseline(tracker, parent, study, folder.key, baseline)

    run = _fit(study, prepared, folder.path, parent, progress)
    together = {"validation": run.evaluate(prepared.validation), "test": run.evaluate(prepared.test)}
    metrics = comparison(
        study,
        {
            split: {
                "multi_task": values,
                **(
                    {"single_task": {k: v for b in alone.values() for k, v in getattr(b, split).items()}}
                    if alone
                    else {}
                ),
            }
            for split, values in together.items()
        },
    )
    log_outcome(parent, together, {split: delta_m(metrics, split) for split in together})
    save_model(folder.path / "model", study, prepared, run)
    metrics.to_json(folder.path / "metrics.json", orient="records", indent=2)
    if study.tracking.models:
        parent.log_model(folder.path / "model")
    parent.log_artifact(folder.path / "metrics.json")
    for figure in plots.train_figures(run.history, metrics, folder.path / "plots"):
        parent.log_artifact(figure, "plots")
    curves = pd.DataFrame([{"epoch": epoch.number, **epoch.metrics} for epoch in run.history])
    return {
        "metrics": metrics,
        "improvement": delta_m(metrics, "test"),
        "hurt": hurt_tasks(metrics),
        "curves": curves,
    }


def _fit(study: Study, prepared: Prepared, folder: Path, parent: Run, progress: Progress) -> TrainingRun:
    """Train, here or under Ray Train, from the last checkpoint where there is one."""
    from polyshot.training.loop import TrainingRun

    activity = "multi-task model"
    progress.start(activity, study.training.epochs)

    def on_epoch(epoch: Epoch) -> None:
        parent.log_metrics(curve(epoch), step=epoch.number)
        progress.advance(activity, epoch.number, f"validation loss {epoch.metrics['val/loss']:.4g}")

    if study.scale.workers == 1 and study.scale.engine != "ray":
        run = _fit_here(study, prepared, folder, on_epoch)
    else:
        from polyshot.cluster.ray import ray_session
        from polyshot.training.distributed import train_distributed

        with ray_session(study):
            state = train_distributed(study, prepared, folder, on_epoch=on_epoch)
        run = TrainingRun(study, prepared)
        run.load_state_dict(state)
    progress.finish(activity, f"best epoch {run.best.number}" if run.best else "")
    return run


def _fit_here(study: Study, prepared: Prepared, folder: Path, on_epoch) -> TrainingRun:
    import time

    import torch

    from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
    from polyshot.training.loop import TrainingRun

    if study.scale.threads is not None:
        torch.set_num_threads(study.scale.threads)
    checkpoint = folder / "checkpoint.pt"
    run = TrainingRun(study, prepared)
    state = load_checkpoint(checkpoint, run.device)
    if state is not None:
        run.load_state_dict(state)
    saved = time.monotonic()
    for epoch in run.epochs():
        on_epoch(epoch)
        if time.monotonic() - saved >= study.training.checkpoint_seconds:
            save_checkpoint(run.state_dict(), checkpoint)
            saved = time.monotonic()
    save_checkpoint(run.state_dict(), checkpoint)
    return run


def curve(epoch: Epoch) -> dict[str, float]:
    """An epoch's metrics under the names of learning curves, apart from the final values that runs are compared by."""
    return {f"curve/{name}": value for name, value in epoch.metrics.items()} | {"curve/epoch_seconds": epoch.seconds}


def log_baseline(tracker: Tracker, parent: Run, study: Study, run_key: str, baseline) -> None:
    """One child run for a single-task baseline."""
    child = tracker.start_run(
        f"baseline {baseline.task}",
        key=f"{run_key}/baseline-{baseline.task}",
        parent=parent,
        params=study.differences(study.single_task(baseline.task)),
        tags={"polyshot.kind": "baseline"},
    )
    for epoch in baseline.history:
        child.log_metrics(curve(epoch), step=epoch.number)
    log_outcome(child, {"validation": baseline.validation, "test": baseline.test}, {})
    child.end()


def log_outcome(run: Run, splits: dict[str, dict[str, float]], improvement: dict[str, float]) -> None:
    """The final metrics of a run: `val/<task>/<metric>`, `test/…` and Δm as `val/improvement`, `test/improvement`."""
    short = {"validation": "val", "test": "test"}
    metrics = {f"{short[split]}/{name}": value for split, values in splits.items() for name, value in values.items()}
    metrics |= {f"{short[split]}/improvement": value for split, value in improvement.items()}
    run.log_metrics(metrics)
