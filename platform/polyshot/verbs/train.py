"""`polyshot train`: one multi-task model and its single-task baselines, with the improvement per task.

A run that one process can do is trained in this one; more workers (or `scale.engine: ray`) go through Ray Train. With
several seeds, all of it is done once for each, on the same splits, and what is reported is over seeds.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyshot import working_copy
from polyshot.errors import Problem, StudyError
from polyshot.outcomes import curve, log_baseline, log_outcome, log_verdicts
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import read_table, write_improvement, write_table
from polyshot.shown import Shown
from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker
from polyshot.verbs.recording import Recording, ending, recorded

# Heavy modules are imported inside the functions: the tracker's writer process starts first and loads MLflow meanwhile.
if TYPE_CHECKING:
    import pandas as pd

    from polyshot.data.prepare import Prepared
    from polyshot.saved_model import SavedModel
    from polyshot.training.loop import Epoch, TrainingRun


@dataclass(frozen=True, repr=False)
class TrainResult(Shown):
    """What a training run gave.

    Attributes:
        metrics: one row per split and task: multi_task, single_task, the improvement, its interval and the verdict (see
            `results.comparison`); of several seeds, their means (see `results.across_seeds`).
        improvement: Δm on the test split as a fraction; NaN without baselines. Of several seeds, the mean.
        interval: its 95 % interval over test rows (see `training.bootstrap`), or over seeds; NaN without baselines.
        hurt: tasks that are worse on test than alone beyond noise, worst first.
        curves: one row per epoch of the multi-task model, and per seed.
        folder: the run's folder, which holds the model (of several seeds, the first one's).
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
        seeds: the `metrics` of each seed, one below the other; None for a single one.
    """

    metrics: pd.DataFrame
    improvement: float
    interval: tuple[float, float]
    hurt: list[str]
    curves: pd.DataFrame
    folder: Path
    mlflow_id: str | None
    seeds: pd.DataFrame | None = None

    def _words(self) -> Iterator[str]:
        from polyshot.results import verdict_words

        drawn = "test rows" if self.seeds is None else f"{self.seeds['seed'].nunique()} seeds"
        yield from verdict_words(self.metrics, self.improvement, self.interval, drawn)
        yield f"The model and all else is in {self.folder}."

    def _tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield "Learnt together", self.metrics

    @property
    def model(self) -> SavedModel:
        from polyshot.saved_model import SavedModel

        return SavedModel.load(self.folder / "model")


def train(
    study: Study,
    *,
    table: pd.DataFrame | None = None,
    baselines: bool = True,
    seeds: int = 1,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train the study's multi-task model, and each task alone for comparison.

    An interrupted run of the same study goes on from its last checkpoint. Of several seeds, none that has ended is
    trained again, even where more are asked for later.

    Args:
        table: the rows to learn from, in place of `data.source`.
        baselines: also train each task alone under the same budget (from the cache where that was done before).
        seeds: so many trainings, with `study.seed` and those that follow it, each with baselines of its own.
        fresh: start anew even where an interrupted run could go on.

    Raises:
        PolyshotError: for data that cannot be learnt from, a tracking store that cannot be used, too few CPUs, a
            training that diverges, or fewer seeds than one.
    """
    if seeds < 1:
        raise StudyError([Problem("--seeds", f"must be 1 or more, got {seeds}")])
    with Tracker.open(study) as tracker, ExitStack() as resources:
        from polyshot.data.prepare import prepare
        from polyshot.training.baselines import SECTIONS, data_digest
        from polyshot.training.loop import TrainingRun
        from polyshot.training.processor import use_processor

        prepared = prepare(study, table)
        for note in (*prepared.notes, tracker.store.words):
            progress.note(note)
        use_processor(study, prepared)
        # Built before anything is written: what cannot be trained leaves no run behind.
        run = TrainingRun(study, prepared)
        if not _fits_this_process(study):
            from polyshot.cluster.ray import ray_session
            from polyshot.training.distributed import check_resources

            resources.enter_context(ray_session(study))
            check_resources(study)
        digest = study.digest(*SECTIONS)
        if seeds == 1:
            with recorded(tracker, study, "train", digest, fresh=fresh) as recording:
                progress = recording.kept(progress)
                result = _train(run, prepared, baselines, tracker, recording.run, recording.folder.path, progress)
        else:
            digest += f"-seeds-{data_digest(prepared)}" + ("" if baselines else "-alone")
            with recorded(tracker, study, "train", digest, fresh=fresh, reopen_finished=True) as recording:
                progress = recording.kept(progress)
                result = _train_seeds(study, prepared, baselines, seeds, recording, progress)
    mlflow_id = recording.settle(progress)
    recording.finish(progress)
    return TrainResult(**result, folder=recording.folder.path, mlflow_id=mlflow_id)


def _train(
    run: TrainingRun,
    prepared: Prepared,
    with_baselines: bool,
    tracker: Tracker,
    parent: Run,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    import pandas as pd

    from polyshot.report import plots
    from polyshot.results import comparison, delta_m, hurt_tasks
    from polyshot.saved_model import save_model
    from polyshot.training.baselines import Baseline, merged, train_baselines
    from polyshot.training.bootstrap import improvement_intervals

    study = run.study
    models = {}
    alone: dict[str, Baseline] = {}
    if with_baselines:
        alone = train_baselines(study, prepared, study.storage_folder / "baselines", progress)
        for baseline in alone.values():
            differences = study.differences(study.single_task(baseline.task))
            log_baseline(tracker, parent, f"{parent.key}/baseline-{baseline.task}", differences, baseline)
        models["single_task"] = merged(alone)
    _fit(run, prepared, folder, parent, progress)
    models["multi_task"] = {"validation": run.evaluate(prepared.validation), "test": run.evaluate(prepared.test)}

    intervals = improvement_intervals(study, prepared, run, alone) if alone else None
    metrics = comparison(study, models, intervals)
    log_outcome(parent, models["multi_task"], {split: delta_m(metrics, split) for split in ("validation", "test")})
    if intervals:
        log_verdicts(parent, metrics, intervals)
    save_model(folder / "model", study, prepared, run)
    metrics.to_json(folder / "metrics.json", orient="records", indent=2)
    curves = pd.DataFrame([{"epoch": epoch.number, **epoch.metrics} for epoch in run.history])
    write_table(folder / "curves.json", curves)
    interval = intervals["test"].delta_m.ends if intervals else (math.nan, math.nan)
    write_improvement(folder, delta_m(metrics, "test"), interval)
    if study.tracking.models:
        parent.log_model(folder / "model")
    parent.log_artifact(folder / "metrics.json")
    for figure in plots.train_figures(run.history, metrics, folder / "plots"):
        parent.log_artifact(figure, "plots")
    return {
        "metrics": metrics,
        "improvement": delta_m(metrics, "test"),
        "interval": interval,
        "hurt": hurt_tasks(metrics),
        "curves": curves,
    }


def _train_seeds(
    study: Study, prepared: Prepared, with_baselines: bool, seeds: int, recording: Recording, progress: Progress
) -> dict[str, Any]:
    import pandas as pd

    from polyshot.report.plots import improvement_per_task
    from polyshot.results import across_seeds, chosen_values, delta_m, hurt_tasks
    from polyshot.training.baselines import train_baselines_of

    folder, parent = recording.folder.path, recording.run
    tables, curves = {}, {}
    of_seeds = {seed: study.with_values({"seed": seed}) for seed in range(study.seed, study.seed + seeds)}
    if with_baselines and _fits_this_process(study):  # all seeds' at once; each finds its own in the cache
        train_baselines_of(list(of_seeds.values()), prepared, study.storage_folder / "baselines", progress)
    for seed, of_seed in of_seeds.items():
        tables[seed], curves[seed] = _one_seed(study, of_seed, prepared, with_baselines, recording, progress)
    metrics, intervals = across_seeds(list(tables.values()))

    log_outcome(parent, chosen_values(metrics), {split: delta_m(metrics, split) for split in ("validation", "test")})
    metrics.to_json(folder / "metrics.json", orient="records", indent=2)
    all_curves = pd.concat(curves, names=["seed"]).reset_index(level=0)
    write_table(folder / "curves.json", all_curves)
    interval = intervals["test"].delta_m.ends if intervals else (math.nan, math.nan)
    write_improvement(folder, delta_m(metrics, "test"), interval, seeds)
    shutil.copytree(folder / f"seed-{study.seed}" / "model", folder / "model", dirs_exist_ok=True)
    parent.log_artifact(folder / "metrics.json")
    if intervals:
        log_verdicts(parent, metrics, intervals)
        (folder / "plots").mkdir(exist_ok=True)
        parent.log_artifact(improvement_per_task(metrics, folder / "plots" / "improvement.png"), "plots")
    return {
        "metrics": metrics,
        "improvement": delta_m(metrics, "test"),
        "interval": interval,
        "hurt": hurt_tasks(metrics),
        "curves": all_curves,
        "seeds": pd.concat(tables, names=["seed"]).reset_index(level=0),
    }


def _one_seed(
    study: Study, of_seed: Study, prepared: Prepared, with_baselines: bool, recording: Recording, progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The metrics and learning curves of one seed, a child run; from the disk where it has ended before."""
    from polyshot.training.loop import TrainingRun

    name = f"seed-{of_seed.seed}"
    folder = recording.folder.path / name
    if not (folder / "ended.json").exists():
        progress.note(f"seed {of_seed.seed}")
        folder.mkdir(exist_ok=True)
        parent, tags = recording.run, {"polyshot.kind": "seed"}
        differences = study.differences(of_seed)
        child = recording.tracker.start_run(name, f"{parent.key}/{name}", parent, differences, tags)
        training = TrainingRun(of_seed, prepared)
        with ending(child):
            found = _train(training, prepared, with_baselines, recording.tracker, child, folder, progress)
        write_table(folder / "ended.json", found["metrics"])  # the last: a seed that has it is whole
        working_copy.push(folder)
    return read_table(folder / "ended.json"), read_table(folder / "curves.json")


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
