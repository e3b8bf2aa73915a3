"""`polyshot transfer`: what was learned elsewhere, moved to a study's tasks by several methods, and whether it helped.

Every method is trained on the same splits as training from scratch is, at every budget of labels and in every
repetition. Trainings are kept: an interrupted comparison, or one with another method added, trains what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyshot.errors import Problem, ResourceError, StudyError
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import read_table, runs, write_json, write_table
from polyshot.shown import Shown
from polyshot.study import Study
from polyshot.study.transfer import SCRATCH, Distillation, MetaLearned
from polyshot.tracking.tracker import Run, Tracker
from polyshot.verbs.recording import Recording, recorded

# Heavy modules are imported inside the functions: the tracker's writer process starts first and loads MLflow meanwhile.
if TYPE_CHECKING:
    import pandas as pd

    from polyshot.saved_model import SavedModel
    from polyshot.transfer.problem import Sources, TargetData
    from polyshot.transfer.source import Source
    from polyshot.transfer.trials import Outcome, Trial

_TABLE, _CHOICE = "transfer.json", "choice.json"
KEPT = "transfers"  # the folder of trainings in the study's


@dataclass(frozen=True, repr=False)
class TransferResult(Shown):
    """What a comparison of methods gave.

    Attributes:
        table: one row per budget, task and method (see `transfer.verdict.comparison`).
        recommended: by budget, the method that is best on validation.
        method: of the model that is given back: the one recommended at the largest budget, unless the guard took
            `scratch`.
        folder: the run's folder, which holds the model.
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
    """

    table: pd.DataFrame
    recommended: dict[str, str]
    method: str
    folder: Path
    mlflow_id: str | None

    def _words(self) -> Iterator[str]:
        for budget, method in self.recommended.items():
            yield f"Recommended with {budget} labels: {method}."
        yield f"The model of {self.method} and all else is in {self.folder}."

    def _tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        shown = [
            "task",
            "labels",
            "method",
            "metric",
            "value",
            "difference",
            "difference_low",
            "difference_high",
            "verdict",
        ]
        yield "Methods beside training from scratch", self.table[shown]

    @property
    def model(self) -> SavedModel:
        from polyshot.saved_model import SavedModel

        return SavedModel.load(self.folder / "model")


def transfer(
    study: Study, *, table: pd.DataFrame | None = None, fresh: bool = False, progress: Progress = SILENT
) -> TransferResult:
    """Compare the study's methods of transfer with training from scratch, and save the model that is recommended.

    Args:
        table: the rows to learn from, in place of `data.source`.
        fresh: train everything anew.

    Raises:
        PolyshotError: for a source that is not there or does not fit, data that cannot be learnt from, a budget that
            the training rows do not have, a tracking store that cannot be used, a training that diverges.
    """
    check_scale(study)
    sources = find_sources(study, progress)
    with Tracker.open(study) as tracker:
        from polyshot.training.processor import use_processor
        from polyshot.transfer.problem import TargetData

        targets = TargetData.folds(study, table)
        target = targets[0]
        for note in (*target.own.notes, *sources.main.notes(target.table, study), tracker.store.words):
            progress.note(note)
        use_processor(study, target.own)
        trials = checked_trials(targets, sources)
        digest = f"{study.digest(*SECTIONS)}-{sources.main.digest}"
        with recorded(tracker, study, "transfer", digest, fresh=fresh) as recording:
            progress = recording.kept(progress)
            folder = recording.folder
            cache = folder.path / KEPT if fresh else study.storage_folder / KEPT
            conclude(study, targets, trials, cache, recording, progress)
    mlflow_id = recording.settle(progress)
    recording.finish(progress)
    return read_result(folder.path, mlflow_id)


# What must be the same for a run to go on.
SECTIONS = ("name", "seed", "data", "tasks", "model", "balance", "training", "transfer")


def check_scale(study: Study) -> None:
    """
    Raises:
        ResourceError: when the study asks for more than one process.
    """
    if study.scale.workers > 1 or study.scale.engine == "ray":
        raise ResourceError(
            "scale: `polyshot transfer` trains in one process; set scale.workers to 1, engine to 'auto'"
        )


def checked_trials(targets: Sequence[TargetData], sources: Sources) -> list[Trial]:
    """All trainings of the study, of which each method has been built once: what cannot be built leaves no run behind.

    Raises:
        PolyshotError: for a method that the source or the target does not allow, or a budget that cannot be had.
    """
    from polyshot.transfer.trials import trials_of

    trials = [trial for fold, target in enumerate(targets) for trial in trials_of(target, sources, fold)]
    first = trials[0].problem
    for trial in trials:
        if trial.problem is first:
            trial.begin()
    return trials


# --- sources ---------------------------------------------------------------------------------------------------------


def find_sources(study: Study, progress: Progress = SILENT) -> Sources:
    """What the study transfers from; a study file without a run is trained first.

    Raises:
        StudyError: when it names no source.
        RunError: when there is no such run, or it has no task `transfer.source_task`.
    """
    from polyshot.transfer.problem import Sources

    settings = study.transfer
    if settings.source is None:
        message = "is missing; name a run, or the file of a study to learn first"
        raise StudyError([Problem("transfer.source", message)])
    methods = settings.methods.values()
    teachers = {own.teacher for own in methods if isinstance(own, Distillation) and own.teacher is not None}
    learners = {own.run for own in methods if isinstance(own, MetaLearned)}
    return Sources(
        find_source(settings.source, study, progress, task=settings.source_task),
        {name: find_source(name, study, progress) for name in sorted(teachers)},
        {name: _learner(name, study) for name in sorted(learners)},
    )


def find_source(name: str, study: Study, progress: Progress = SILENT, *, task: str | None = None) -> Source:
    """The trained model that `name` stands for in `study`: as `transfer.source`.

    Args:
        task: as `transfer.source_task`.

    Raises:
        RunError: when there is no such run, or it has no such task.
    """
    from polyshot.saved_model import SavedModel
    from polyshot.transfer.source import Source
    from polyshot.verbs.predict import find_model

    if not name.endswith((".yaml", ".yml")):
        saved = SavedModel.load(find_model(name, study.storage_folder.parent))
        origin = study.with_tree(saved.study.to_dict())
    else:
        origin = Study.load(study.folder / name)
        saved = SavedModel.load(_trained(origin, progress) / "model")
    return Source(name, saved, origin, task or next((own for own in study.tasks if own in saved.study.tasks), None))


def _trained(study: Study, progress: Progress) -> Path:
    """The newest run of this very study that has a model, trained now where there is none."""
    from polyshot.training.baselines import SECTIONS as TRAINED
    from polyshot.verbs.train import train

    for folder in runs(study, "train", study.digest(*TRAINED)):
        if (folder / "model" / "signature.json").exists():
            return folder
    return train(study, baselines=False, progress=progress).folder


def _learner(name: str, study: Study) -> Any:
    from polyshot.meta.saved import SavedLearner
    from polyshot.verbs.adapt import find_learner

    is_file = name.endswith((".yaml", ".yml"))
    return SavedLearner.load(find_learner(str(study.folder / name) if is_file else name, study.storage_folder.parent))


# --- what comes of it ------------------------------------------------------------------------------------------------


def conclude(
    study: Study,
    targets: Sequence[TargetData],
    trials: Sequence[Trial],
    cache: Path,
    recording: Recording,
    progress: Progress,
) -> None:
    """Train what is not in `cache`, compare, save the model and log all of it; `read_result` reads what was found.

    Args:
        targets: one, or one for each fold of a cross-validation.
    """
    from polyshot.saved_model import write_model
    from polyshot.transfer.plots import metric_by_labels
    from polyshot.transfer.verdict import comparison, recommended

    folder, parent = recording.folder, recording.run
    outcomes = [trial.outcome(cache, progress) for trial in trials]
    table = comparison(study, [target.own for target in targets], outcomes)
    best = recommended(table, study.transfer.guard)
    chosen = _chosen(study, trials, outcomes, best)
    saved, example = chosen.model(cache)
    tree = saved.study.to_dict()
    tree["data"]["split"] = study.data.split.model_dump(mode="json")  # not that of one fold
    write_model(folder.path / "model", replace(saved, study=saved.study.with_tree(tree)), example)
    write_table(folder.path / _TABLE, table)
    write_json(folder.path / _CHOICE, {"recommended": best, "method": chosen.name})

    _log(study, table, outcomes, recording)
    parent.set_tags({f"recommended.{budget}": method for budget, method in best.items()})
    parent.set_tags({"polyshot.method": chosen.name})
    for name in (_TABLE, _CHOICE):
        parent.log_artifact(folder.path / name)
    if study.tracking.models:
        parent.log_model(folder.path / "model")
    for figure in metric_by_labels(table, folder.path / "plots"):
        parent.log_artifact(figure, "plots")


def _chosen(study: Study, trials: Sequence[Trial], outcomes: Sequence[Outcome], best: dict[str, str]) -> Trial:
    """Of the largest budget and the method recommended there, the repetition that is best on validation.

    With the guard, the best one from scratch where that is better still. Of a cross-validation, from the first fold:
    others have other validation rows.
    """
    import numpy as np

    from polyshot.training.improvement import improvements

    budget = trials[-1].problem.budget
    both = zip(trials, outcomes, strict=True)
    pairs = [pair for pair in both if pair[1].budget == budget and pair[1].fold == 0]
    names = [f"{task}/{settings.metric}" for task, settings in study.tasks.items()]
    scratch = [outcome.metrics["validation"] for _, outcome in pairs if outcome.method == SCRATCH]
    yardstick = {name: float(np.mean([metrics[name] for metrics in scratch])) for name in names}
    allowed = {best[str(budget)], *([SCRATCH] if study.transfer.guard else [])}

    def improvement(outcome: Outcome) -> float:
        mean = np.mean(list(improvements(outcome.metrics["validation"], yardstick).values()))
        return -np.inf if np.isnan(mean) else float(mean)

    return max((pair for pair in pairs if pair[1].method in allowed), key=lambda pair: improvement(pair[1]))[0]


def _log(study: Study, table: pd.DataFrame, outcomes: Sequence[Outcome], recording: Recording) -> None:
    """One child run per method, with its metrics by the number of labels; it lasts as long as its trainings did."""
    for method, rows in table.groupby("method", sort=False):
        settings = study.transfer.methods.get(str(method))
        params = {} if settings is None else {f"transfer.{key}": value for key, value in settings.model_dump().items()}
        child = recording.tracker.start_run(
            str(method),
            key=f"{recording.folder.key}/{method}",
            parent=recording.run,
            params=params,
            tags={"polyshot.kind": "baseline" if method == SCRATCH else "method"},
            began=time.time() - sum(outcome.seconds for outcome in outcomes if outcome.method == method),
        )
        for row in rows.to_dict(orient="records"):
            _log_row(child, row)
            if row["verdict"] is not None:
                child.set_tags({f"verdict.{row['task']}.{row['budget']}": row["verdict"]})
        child.end()


def _log_row(run: Run, row: dict[Any, Any]) -> None:
    name = f"{row['task']}/{row['metric']}"
    metrics = {
        f"test/{name}": row["value"],
        f"val/{name}": row["validation"],
        f"test/{row['task']}/difference": row["difference"],
        f"{row['task']}/scratch_labels": row["scratch_labels"],
        f"{row['task']}/steps_to_converge": row["steps"],
    }
    run.log_metrics(metrics, step=row["labels"])


def read_result(folder: Path, mlflow_id: str | None) -> TransferResult:
    """What `conclude` left in a run's folder."""
    choice = json.loads((folder / _CHOICE).read_text(encoding="utf-8"))
    return TransferResult(read_table(folder / _TABLE), **choice, folder=folder, mlflow_id=mlflow_id)
