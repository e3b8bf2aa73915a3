"""`polyshot search`: trials of a study with other values, under Ray Tune and Optuna; then the best one, evaluated.

The run folder holds all that a killed search needs to go on: Optuna's journal, and the checkpoints of its trials.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.experiment import Trial

from polyshot.cluster.ray import nodes, ray_session
from polyshot.data.prepare import Prepared, prepare
from polyshot.errors import RunError
from polyshot.outcomes import log_outcome, log_verdicts
from polyshot.progress import SILENT, Progress
from polyshot.report import plots
from polyshot.results import comparison, delta_m, hurt_tasks
from polyshot.run_folder import RunFolder, newest_run, write_json
from polyshot.saved_model import save_model
from polyshot.searching.importances import parameter_importances
from polyshot.searching.objective import Objective
from polyshot.searching.protocol import ERROR, STOPPED
from polyshot.searching.record import Recorder, log_baseline_once, ranked, validation_metrics
from polyshot.searching.scheduling import Plan, build_scheduler, plan_trials, replay, rungs
from polyshot.searching.searcher import EPOCHS, VALUES, TrialSearcher, check_sampler, open_study, was_stopped
from polyshot.searching.space import build_space, check_space
from polyshot.searching.trainable import (
    DistributedTrainable,
    SearchContext,
    TrialTrainable,
    checkpoint_path,
    prepared_for,
)
from polyshot.study import Study
from polyshot.tracking.store import resolve
from polyshot.tracking.tracker import Run, Tracker
from polyshot.training.baselines import Baseline, merged, train_baselines
from polyshot.training.bootstrap import improvement_intervals
from polyshot.training.checkpoint import load_checkpoint
from polyshot.training.loop import TrainingRun
from polyshot.training.threads import use_threads

_WAITING_MEMORY = 2**20  # bytes; Tune wants a trial to ask for something
_RESULT, _TRIALS, _METRICS, _JOURNAL = "result.json", "trials.json", "metrics.json", "optuna.journal"
# Tune's own logs of every trial, its display and its handler of SIGINT: Polyshot has its own ways for them.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class SearchResult:
    """What a search gave.

    Attributes:
        trials: one row per trial, the best first: number, state (finished, stopped, failed), the objective by its name,
            epochs, seconds, each value that was searched by its dotted key, each `task/metric` on validation, and the
            reasons `stopped` and `error`.
        best_values: the values of the best trial, by dotted key.
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
    best_values: dict[str, Any]
    metrics: pd.DataFrame
    improvement: float
    interval: tuple[float, float]
    hurt: list[str]
    folder: Path
    mlflow_id: str | None
    best_study: Study


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
    digest = search_digest(study)
    if not fresh and (found := saved_result(study, digest)) is not None:
        return found
    store = resolve(study)
    store.check()
    prepared = prepare(study, table)
    for note in (*prepared.notes, store.words):
        progress.note(note)
    use_threads(study, prepared)
    TrainingRun(study, prepared)  # what cannot be built is refused before anything is written
    with ray_session(study):
        plan = plan_trials(study, nodes())
        _warm_up(plan)
        # All that could be refused has been looked at; from here on there is something on disk.
        with Tracker.open(study) as tracker:
            folder = RunFolder.open(study, "search", digest, fresh=fresh, reopen_finished=True)
            parent = tracker.start_run(
                folder.key,
                key=folder.key,
                params=study.flat(),
                tags={"polyshot.kind": "search", "polyshot.study": study.name},
            )
            parent.log_artifact(folder.path / "study.yaml")
            try:
                run = _Search(study, table, prepared, folder, tracker, parent, progress)
                run.run_trials(plan, started)
                outcome = run.conclude()
            except KeyboardInterrupt:
                parent.end("KILLED")
                folder.close("running")
                raise
            except BaseException:
                parent.end("FAILED")
                folder.close("failed")
                raise
            parent.end()
    if (kept := tracker.close()) is not None:
        progress.note(str(kept))
    outcome["mlflow_id"] = tracker.mlflow_id(parent)
    write_json(folder.path / _RESULT, outcome)
    folder.state["mlflow_id"] = outcome["mlflow_id"]
    folder.close("finished")
    return _read_result(study, folder.path, outcome)


def search_digest(study: Study) -> str:
    """Changes with all that trials of one search must have in common; not with its budget, place or tracking."""
    alike = study.with_values({"search.trials": 1, "search.minutes": None, "search.concurrency": None})
    return alike.digest("name", "seed", "data", "tasks", "model", "balance", "training", "search")


class _Search:
    """The parts of one search, and its two acts: the trials, and what is made of the best one."""

    def __init__(
        self,
        study: Study,
        table: pd.DataFrame | None,
        prepared: Prepared,
        folder: RunFolder,
        tracker: Tracker,
        parent: Run,
        progress: Progress,
    ):
        self.study = study
        self.table = table
        self.prepared = prepared
        self.folder = folder
        self.tracker = tracker
        self.parent = parent
        self.progress = progress
        self.trials_folder = (folder.path / "trials").absolute()
        self.baselines = self._train_baselines(study, prepared)
        self.objective = Objective.of(study, self.baselines)
        self.optuna = open_study(study, folder.path / _JOURNAL, self.objective.direction)
        for task, baseline in self.baselines.items():
            params = study.differences(study.single_task(task))
            log_baseline_once(tracker, parent, self.optuna, f"{folder.key}/baseline-{task}", params, baseline)

    def run_trials(self, plan: Plan, started: float) -> None:
        """Run the trials that the budget still allows; it counts from `started` (Unix time) in this process."""
        study = self.study
        started -= self.folder.state.get("seconds", 0.0)
        deadline = math.inf if study.search.minutes is None else started + 60 * study.search.minutes
        context = SearchContext(
            study, self.prepared, self.table, self.objective, self.trials_folder, frozenset(rungs(study)), deadline
        )
        scheduler = build_scheduler(study, self.objective.direction)
        earlier = self.optuna.get_trials(deepcopy=False)
        replay(scheduler, (trial.intermediate_values for trial in earlier if trial.state.is_finished()))
        recorder = Recorder(
            study, self.folder, self.trials_folder, self.tracker, self.parent, self.optuna, self.objective,
            self.progress, started,
        )  # fmt: skip
        searcher = TrialSearcher(
            self.optuna,
            build_space(study),
            sampler=study.search.sampler,
            trials=study.search.trials,
            deadline=deadline,
            check=study.with_values,
            stopped_by=study.search.scheduler,
        )
        recorder.follow(searcher)
        trainable, resources = TrialTrainable, {"cpu": plan.cpus, "gpu": plan.gpus}
        if study.scale.workers > 1:  # Ray Train asks for the workers' share; a trial's own process only waits for them
            trainable, resources = DistributedTrainable, {"cpu": 0, "gpu": 0, "memory": _WAITING_MEMORY}
        if not searcher.is_over:
            with _tune_settings() as scratch:
                # Not `Tuner`, which saves itself, callbacks and searcher included, for a `restore` that is not needed.
                tune.run(
                    tune.with_parameters(trainable, context=context),
                    name=self.folder.key,
                    storage_path=scratch,
                    resources_per_trial=resources,
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=-1,  # the searcher says when it is over
                    max_concurrent_trials=plan.concurrency,
                    reuse_actors=True,
                    max_failures=study.scale.max_failures,
                    raise_on_failed_trial=False,
                    callbacks=[recorder],
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                    verbose=0,
                )
        recorder.finish()

    def conclude(self) -> dict[str, Any]:
        """Evaluate the best trial's model, save it and log it; returns what the result file holds."""
        best = self._best_trial()
        values = best.user_attrs[VALUES]
        study = self.study.with_values(values)
        prepared = prepared_for(study, self.study, self.prepared, self.table)
        use_threads(study, prepared)
        run = TrainingRun(study, prepared)
        state = load_checkpoint(checkpoint_path(self.trials_folder, best.number), run.device)
        if state is not None:
            run.load_state_dict(state)
        else:  # removed by hand: the same training gives the same model
            for _ in run.epochs():
                pass
        together = {"validation": run.evaluate(prepared.validation), "test": run.evaluate(prepared.test)}

        tuned = self._train_baselines(study, prepared)
        for task, baseline in tuned.items():
            key = f"{self.folder.key}/baseline-{task}-tuned-{best.number:04d}"
            params = self.study.differences(study.single_task(task))
            log_baseline_once(self.tracker, self.parent, self.optuna, key, params, baseline)
        models = {"single_task": merged(self.baselines), "single_task_tuned": merged(tuned), "multi_task": together}
        intervals = improvement_intervals(study, prepared, run, tuned)
        metrics = comparison(study, models, intervals)
        improvement = {split: delta_m(metrics, split) for split in together}
        trials = trials_table(self.optuna, self.objective)
        self._log(best, values, run, together, improvement, metrics, trials)
        log_verdicts(self.parent, metrics, intervals)
        save_model(self.folder.path / "model", study, prepared, run)
        if study.tracking.models:
            self.parent.log_model(self.folder.path / "model")
        return {
            "trials_begun": len(self.optuna.get_trials(deepcopy=False)),
            "seconds": self.folder.state["seconds"],
            "best_values": values,
            "improvement": improvement["test"],
            "interval": intervals["test"].delta_m.ends,
            "hurt": hurt_tasks(metrics),
        }

    def _log(
        self,
        best: FrozenTrial,
        values: dict[str, Any],
        run: TrainingRun,
        together: dict[str, dict[str, float]],
        improvement: dict[str, float],
        metrics: pd.DataFrame,
        trials: pd.DataFrame,
    ) -> None:
        """The best trial on the parent run, with the tables and plots of the search."""
        log_outcome(self.parent, together, improvement)
        # Tags and not parameters: MLflow keeps a parameter's first value, and a larger budget may find a better trial.
        tags = {f"best.{key}": value for key, value in values.items()}
        self.parent.set_tags({"polyshot.best_trial": f"trial-{best.number:04d}"} | tags)
        path = self.folder.path
        _write_table(path / _METRICS, metrics)
        _write_table(path / _TRIALS, trials)
        trials.to_csv(path / "trials.csv", index=False)
        (path / "best-study.yaml").write_text(run.study.to_yaml(), encoding="utf-8")
        for name in (_METRICS, "trials.csv", "best-study.yaml"):
            self.parent.log_artifact(path / name)
        objective = self.objective
        importances = parameter_importances(self.optuna)
        for figure in (
            *plots.search_figures(trials, objective.name, objective.direction, importances, path / "plots"),
            *plots.train_figures(run.history, metrics, path / "plots"),
        ):
            self.parent.log_artifact(figure, "plots")

    def _best_trial(self) -> FrozenTrial:
        trials = self.optuna.get_trials(deepcopy=False)
        order = ranked(trials, self.objective.direction)
        if order:
            return order[0]
        if not trials:
            minutes = self.study.search.minutes
            raise RunError(f"search.minutes: the {minutes:g} minutes were over before a trial began; raise the limit")
        error = trials[0].user_attrs.get(ERROR, "unknown")
        raise RunError(f"all {len(trials)} trials of {self.folder.path} failed, the first with: {error}")

    def _train_baselines(self, study: Study, prepared: Prepared) -> dict[str, Baseline]:
        return train_baselines(study, prepared, study.storage_folder / "baselines", self.progress)


def trials_table(optuna_study: optuna.Study, objective: Objective) -> pd.DataFrame:
    """The trials that have ended, as `SearchResult.trials` describes them."""
    ended = [trial for trial in optuna_study.get_trials(deepcopy=False) if trial.state.is_finished()]
    with_value = ranked(ended, objective.direction)
    rows = []
    for trial in [*with_value, *(trial for trial in ended if trial.value is None)]:
        attributes = trial.user_attrs
        failed = trial.state == TrialState.FAIL
        rows.append(
            {
                "number": trial.number,
                "state": "failed" if failed else "stopped" if was_stopped(trial) else "finished",
                objective.name: trial.value if trial.value is not None else math.nan,
                "epochs": attributes.get(EPOCHS, 0),
                "seconds": trial.duration.total_seconds() if trial.duration else math.nan,
                **attributes.get(VALUES, {}),
                **{name: value for name, value in validation_metrics(trial).items() if name != objective.name},
                "stopped": attributes.get(STOPPED),
                "error": attributes.get(ERROR),
            }
        )
    return pd.DataFrame(rows)


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['number']:04d}"


def _warm_up(plan: Plan) -> None:
    """Have Ray's idle processes, which become the trials' workers, import torch while the baselines are trained."""
    module = TrialTrainable.__module__

    @ray.remote(num_cpus=plan.cpus)
    def warm() -> None:
        with suppress(ImportError):  # of that, the trials will tell
            importlib.import_module(module)

    for _ in range(plan.concurrency):
        warm.remote()


@contextmanager
def _tune_settings() -> Iterator[str]:
    """Tune's environment for the length of its run; yields a folder for what it writes, none of which is needed."""
    before = {name: os.environ.get(name) for name in _TUNE_SETTINGS}
    os.environ.update(_TUNE_SETTINGS)
    level = logging.getLogger("ray.tune").level
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix="polyshot-tune-", ignore_cleanup_errors=True) as scratch:
            yield scratch
    finally:
        logging.getLogger("ray.tune").setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- the result on disk ----------------------------------------------------------------------------------------------


def saved_result(study: Study, digest: str) -> SearchResult | None:
    """The result of the newest search like this one, when it has ended and used the study's budget."""
    folder = newest_run(study, "search", digest)
    if folder is None or not (folder / _RESULT).exists():
        return None
    outcome = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    trials, minutes = study.search.trials, study.search.minutes
    is_used = (trials is not None and outcome["trials_begun"] >= trials) or (
        minutes is not None and outcome["seconds"] >= 60 * minutes
    )
    return _read_result(study, folder, outcome) if is_used else None


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """Rows as JSON with every digit (pandas rounds), and null for what is undefined."""
    write_json(path, table.astype(object).where(table.notna(), None).to_dict(orient="records"))


def _read_table(path: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))


def _read_result(study: Study, folder: Path, outcome: dict[str, Any]) -> SearchResult:
    return SearchResult(
        trials=_read_table(folder / _TRIALS),
        best_values=outcome["best_values"],
        metrics=_read_table(folder / _METRICS),
        improvement=outcome["improvement"],
        interval=tuple(outcome.get("interval", (math.nan, math.nan))),
        hurt=outcome["hurt"],
        folder=folder,
        mlflow_id=outcome["mlflow_id"],
        best_study=study.with_values(outcome["best_values"]),
    )
