"""`polyshot search`: trials of a study with other values, under Ray Tune and Optuna; then the best one, evaluated.

The run folder holds all that a killed search needs to go on: Optuna's journal, and the checkpoints of its trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from polyshot.cluster.ray import nodes, ray_session
from polyshot.data.prepare import Prepared, prepare
from polyshot.outcomes import log_outcome, log_verdicts
from polyshot.progress import SILENT, Progress
from polyshot.report import plots
from polyshot.results import comparison, delta_m, hurt_tasks, verdict_words
from polyshot.run_folder import read_table, write_improvement, write_json, write_table
from polyshot.saved_model import save_model
from polyshot.searching import confirmation
from polyshot.searching.objective import Objective, validation_baselines
from polyshot.searching.packing import pack_size
from polyshot.searching.population import population_parameters
from polyshot.searching.protocol import RESULT
from polyshot.searching.record import log_baseline_once
from polyshot.searching.scheduling import LABEL_PARTS, Plan, plan_trials
from polyshot.searching.searcher import VALUES, check_sampler
from polyshot.searching.space import check_space
from polyshot.searching.starts import starts
from polyshot.searching.subject import MultiTaskLearning, check_share, have_same_data
from polyshot.searching.sweep import Sweep, ended_search, read_trials, search_digest, warm_up
from polyshot.shown import Shown
from polyshot.study import Study
from polyshot.tracking.store import resolve
from polyshot.tracking.tracker import Tracker
from polyshot.training.baselines import Baseline, chosen_metrics, merged, train_baselines
from polyshot.training.bootstrap import improvement_intervals
from polyshot.training.loop import TrainingRun
from polyshot.training.processor import use_processor
from polyshot.verbs.recording import Recording, recorded

_METRICS, _CONFIRMATION = "metrics.json", "confirmation.json"
_CONCLUDING_SECONDS = 10.0  # intervals, plots and the end of the recording
# What trials of one search must have in common.
_SECTIONS = ("name", "seed", "data", "tasks", "model", "balance", "training")


@dataclass(frozen=True, repr=False)
class SearchResult(Shown):
    """What a search gave.

    Attributes:
        trials: one row per trial, the best first (see `searching.sweep.trials_table`).
        best_trial: the number of the one that was chosen, evaluated and saved.
        best_values: its values, by dotted key; of a population, the last ones.
        chosen: how it was chosen, in words.
        confirmation: the best trials and the study's own values with new seeds (see `searching.confirmation`), where
            the study asks for it.
        confirmed: what it says of the best trial, in words.
        metrics: one row per split and task: multi_task, single_task (the study's own settings), single_task_tuned (the
            best trial's settings) and the improvement over the latter, its interval and the verdict (see
            `results.comparison`).
        improvement: Δm of the best trial's model over the tuned single-task baselines on test, as a fraction.
        interval: its 95 % interval over test rows (see `training.bootstrap`).
        hurt: tasks that are worse on test than alone beyond noise, worst first.
        folder: the run's folder, which holds the best trial's model.
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
        best_study: the study with the best trial's values.
    """

    trials: pd.DataFrame
    best_trial: int
    best_values: dict[str, Any]
    chosen: str
    confirmation: pd.DataFrame | None
    confirmed: list[str]
    metrics: pd.DataFrame
    improvement: float
    interval: tuple[float, float]
    hurt: list[str]
    folder: Path
    mlflow_id: str | None
    best_study: Study

    def _words(self) -> Iterator[str]:
        yield from verdict_words(self.metrics, self.improvement, self.interval)
        yield f"The best trial's model and all else is in {self.folder}."

    def _tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield "The best trial", self.metrics
        yield f"{len(self.trials)} trials", self.trials.dropna(axis=1, how="all")

    @property
    def front(self) -> pd.DataFrame:
        """The trials that no other one beats in all objectives, the best first; of one objective, the best."""
        return self.trials[self.trials["front"]] if "front" in self.trials else self.trials.head(1)


def search(
    study: Study, *, table: pd.DataFrame | None = None, progress: Progress = SILENT, fresh: bool = False
) -> SearchResult:
    """Search `study.search`'s spaces within its budget, and evaluate the best trial's model once on test.

    A search that was interrupted goes on; one that has ended goes on when its budget was raised, and otherwise returns
    what it found.

    Args:
        table: the rows to learn from, in place of `data.source`.
        fresh: start anew in any case.

    Raises:
        PolyshotError: for a space that does not fit the study, data that cannot be learnt from, too few CPUs, a missing
            sampler, a tracking store that cannot be used, a search whose trials all failed.
    """
    started = time.time()
    check_sampler(study.search.sampler)
    check_space(study)
    if study.search.is_population:
        population_parameters(study)
    starts(study, with_mlflow=False)
    digest = search_digest(study, *_SECTIONS)
    if not fresh and (found := saved_result(study, digest)) is not None:
        return found
    store = resolve(study)
    store.check()
    prepared = prepare(study, table)
    for note in (*prepared.notes, store.words):
        progress.note(note)
    use_processor(study, prepared)
    if study.search.fidelity == "labels":
        check_share(prepared, 1 / LABEL_PARTS, study.seed)
    # What cannot be built is refused before anything is written.
    size, why_not = pack_size(study, TrainingRun(study, prepared))
    if why_not:
        progress.note(f"search.pack: these trials cannot be packed ({why_not}); they run under Ray Tune")
    with nullcontext() if size else ray_session(study):
        plan: Plan | int = size
        if not size:
            plan = plan_trials(study, nodes())
            warm_up(plan)
        # All that could be refused has been looked at; from here on there is something on disk.
        with (
            Tracker.open(study) as tracker,
            recorded(tracker, study, "search", digest, fresh=fresh, reopen_finished=True) as recording,
        ):
            progress = recording.kept(progress)
            run = _Search(study, table, prepared, recording, progress)
            run.sweep.run(plan, started, reserve=run.reserve(plan))
            outcome = run.conclude(run.confirm(plan) if study.search.confirm else None)
    outcome["mlflow_id"] = recording.settle(progress)
    write_json(recording.folder.path / RESULT, outcome)
    recording.finish(progress)
    return _read_result(study, recording.folder.path, outcome)


class _Search:
    """The parts of one search: its trials, and what is made of the best one."""

    def __init__(
        self,
        study: Study,
        table: pd.DataFrame | None,
        prepared: Prepared,
        recording: Recording,
        progress: Progress,
    ):
        self.study, self.table, self.prepared = study, table, prepared
        self.folder, self.parent, self.tracker = recording.folder, recording.run, recording.tracker
        self.progress = progress
        self.baselines = self._train_baselines(study, prepared)
        objective = Objective.of(study, validation_baselines(study, self.baselines))
        self.subject = MultiTaskLearning(study, prepared.for_training(), table, objective)
        self.sweep = Sweep(study, self.subject, self.folder, self.tracker, self.parent, progress)
        for task, baseline in self.baselines.items():
            self._log_baseline(f"baseline-{task}", study.single_task(task), baseline)

    def reserve(self, plan: Plan | int) -> float:
        """Seconds of the study's time limit that what follows the trials will take, at most half of it."""
        search = self.study.search
        again = 0 if search.confirm is None else (search.confirm.top + 1) * search.confirm.seeds
        # A training of all tasks takes as long as those of the single ones in sum, or less.
        at_once = plan.concurrency if isinstance(plan, Plan) else 1
        seconds = self._conclusion() + self._baseline_seconds() * math.ceil(again / at_once)
        return min(seconds, 30 * (search.minutes or math.inf))

    def _conclusion(self) -> float:
        """Seconds that `conclude` will take: the single tasks are trained again with the best trial's settings."""
        return _CONCLUDING_SECONDS + 1.5 * self._baseline_seconds()

    def _baseline_seconds(self) -> float:
        return sum(epoch.seconds for baseline in self.baselines.values() for epoch in baseline.history)

    def confirm(self, plan: Plan | int) -> pd.DataFrame:
        """Train the best trials again with new seeds; returns the table of their confirmation."""
        objective = self.subject.objective
        on_test = replace(objective, baselines=chosen_metrics(self.study, merged(self.baselines)["test"]))
        objectives = {"validation": objective, "test": on_test}
        table = self.sweep.confirmed(plan, objectives, self._judged, self._conclusion())
        self._log_confirmation(table)
        return table

    def _judged(self, study: Study, restore: Callable[[TrainingRun], None]) -> dict[str, dict[str, float]]:
        """The metrics by split of a training of `study`, which `restore` brings to its end."""
        prepared = self._prepared(study)
        run = self.subject.begin(study)
        restore(run)
        return {"validation": run.evaluate(prepared.validation), "test": run.evaluate(prepared.test)}

    def _prepared(self, study: Study) -> Prepared:
        return self.prepared if have_same_data(study, self.study) else prepare(study, self.table)

    def _log_confirmation(self, table: pd.DataFrame) -> None:
        path = self.folder.path
        write_table(path / _CONFIRMATION, table)
        self.parent.log_artifact(path / _CONFIRMATION)
        for name in self.subject.objective.names:
            if "difference" in table:
                (path / "plots").mkdir(exist_ok=True)
                place = path / "plots" / f"confirmation_{name.replace('/', '_')}.png"
                self.parent.log_artifact(plots.confirmation(table, name, place), "plots")
        for sentence in confirmation.words(table):
            self.progress.note(sentence)

    def conclude(self, confirmed: pd.DataFrame | None) -> dict[str, Any]:
        """Evaluate the best trial's model, save it and log it; returns what the result file holds.

        Args:
            confirmed: the table of the confirmation, where the study asks for one.
        """
        best = self.sweep.best(confirmed)
        study = self.study.with_values(best.user_attrs[VALUES])
        prepared = self._prepared(study)
        use_processor(study, prepared)
        run = self.subject.begin(study)
        self.sweep.restore(run, best)
        together = {"validation": run.evaluate(prepared.validation), "test": run.evaluate(prepared.test)}

        tuned = self._train_baselines(study, prepared, self.sweep.changes(best))
        for task, baseline in tuned.items():
            self._log_baseline(f"baseline-{task}-tuned-{best.number:04d}", study.single_task(task), baseline)
        models = {"single_task": merged(self.baselines), "single_task_tuned": merged(tuned), "multi_task": together}
        intervals = improvement_intervals(study, prepared, run, tuned)
        metrics = comparison(study, models, intervals)
        improvement = {split: delta_m(metrics, split) for split in together}
        log_outcome(self.parent, together, improvement)
        self.sweep.log(best, confirmed)
        self._log(run, metrics)
        write_improvement(self.folder.path, improvement["test"], intervals["test"].delta_m.ends)
        log_verdicts(self.parent, metrics, intervals)
        save_model(self.folder.path / "model", study, prepared, run)
        if study.tracking.models:
            self.parent.log_model(self.folder.path / "model")
        return self.sweep.outcome(best) | {
            "best_trial": best.number,
            "confirm": self.study.search.confirm and self.study.search.confirm.model_dump(),
            "confirmation": [] if confirmed is None else confirmation.words(confirmed),
            **({} if confirmed is None else {"chosen": confirmation.chosen_words(confirmed)}),
            "improvement": improvement["test"],
            "interval": intervals["test"].delta_m.ends,
            "hurt": hurt_tasks(metrics),
        }

    def _log(self, run: TrainingRun, metrics: pd.DataFrame) -> None:
        """The best trial's metrics, and the plots of its training, on the parent run."""
        path = self.folder.path
        write_table(path / _METRICS, metrics)
        self.parent.log_artifact(path / _METRICS)
        for figure in plots.train_figures(run.history, metrics, path / "plots"):
            self.parent.log_artifact(figure, "plots")

    def _log_baseline(self, name: str, study: Study, baseline: Baseline) -> None:
        key, params = f"{self.folder.key}/{name}", self.study.differences(study)
        log_baseline_once(self.tracker, self.parent, self.sweep.optuna, key, params, baseline)

    def _train_baselines(
        self, study: Study, prepared: Prepared, changes: Mapping[int, Study] | None = None
    ) -> dict[str, Baseline]:
        return train_baselines(study, prepared, study.storage_folder / "baselines", self.progress, changes)


def saved_result(study: Study, digest: str) -> SearchResult | None:
    """The result of the newest search like this one, when it has ended and used the study's budget."""
    found = ended_search(study, "search", digest)
    confirm = study.search.confirm and study.search.confirm.model_dump()
    return _read_result(study, *found) if found and confirm in (None, found[1]["confirm"]) else None


def _read_result(study: Study, folder: Path, outcome: dict[str, Any]) -> SearchResult:
    return SearchResult(
        trials=read_trials(folder),
        best_trial=outcome["best_trial"],
        best_values=outcome["best_values"],
        chosen=outcome["chosen"],
        confirmation=read_table(folder / _CONFIRMATION) if outcome["confirm"] else None,
        confirmed=outcome["confirmation"],
        metrics=read_table(folder / _METRICS),
        improvement=outcome["improvement"],
        interval=tuple(outcome.get("interval", (math.nan, math.nan))),
        hurt=outcome["hurt"],
        folder=folder,
        mlflow_id=outcome["mlflow_id"],
        best_study=study.with_values(outcome["best_values"]),
    )
