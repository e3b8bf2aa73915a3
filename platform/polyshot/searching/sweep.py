"""The trials of one search, from the first to the last: under Ray Tune, in a run folder that lets a killed one go on.

Called by the verbs that search, inside a Ray session of theirs. What a trial trains is its `Subject`; what becomes of
the best one is the verb's affair.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from polyshot import working_copy
from polyshot.cluster.ray import nodes
from polyshot.errors import ResourceError, RunError
from polyshot.progress import Progress
from polyshot.report import plots
from polyshot.run_folder import RunFolder, read_table, runs, write_json, write_table
from polyshot.searching import confirmation
from polyshot.searching.confirmation import DEFAULT, Rerun
from polyshot.searching.importances import importances
from polyshot.searching.objective import COST, Objective
from polyshot.searching.packing import PackedTrials
from polyshot.searching.pictures import optuna_figures
from polyshot.searching.protocol import ERROR, LABELS, LINEAGE, RESULT, STOPPED
from polyshot.searching.ranking import chosen_words, is_feasible, pareto_front, ranked
from polyshot.searching.record import Names, Recorder, copied_words, validation_metrics
from polyshot.searching.responses import weight_responses
from polyshot.searching.scheduling import Plan, build_scheduler, replay, rungs
from polyshot.searching.searcher import (
    COPIED,
    EPOCHS,
    METRICS,
    START,
    VALUES,
    TrialSearcher,
    begun,
    open_study,
    span,
    was_stopped,
)
from polyshot.searching.space import TrialValues, build_space
from polyshot.searching.starts import starts
from polyshot.searching.subject import Subject, Trained
from polyshot.searching.trainable import (
    DistributedTrainable,
    LabelTrainable,
    PopulationTrainable,
    SearchContext,
    TrialTrainable,
    checkpoint_path,
)
from polyshot.study import Study
from polyshot.study.search import SMALLEST_POPULATION
from polyshot.tracking.tracker import Run, Tracker
from polyshot.training.changing import train_changing
from polyshot.training.checkpoint import load_checkpoint

_TRIALS, _TRIALS_TABLE, _BEST_STUDY, _JOURNAL = "trials.json", "trials.csv", "best-study.yaml", "optuna.journal"
_SEARCHED = "search.json"  # what was optimised, and which parameters mattered
_RESPONSES, _IMPORTANCES = "weight-responses.csv", "importances.csv"
_SCHEDULES, _SCHEDULES_TABLE = "schedules.json", "schedules.csv"  # of a population's trials
_SCRATCH = "polyshot-tune-"
_HANDED_ON = 3  # checkpoints of a trial that others may copy; Tune may still read the one before the last
_WAITING_MEMORY = 2**20  # bytes; Tune wants a trial to ask for something
# Tune's own logs of every trial, its display and its handler of SIGINT: Polyshot has its own ways for them.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Sweep:
    """One search's trials, in its run folder.

    Attributes:
        optuna: the journal of its trials, as an Optuna study.
    """

    def __init__(
        self,
        study: Study,
        subject: Subject,
        folder: RunFolder,
        tracker: Tracker,
        parent: Run,
        progress: Progress,
        names: Names = Names(),  # noqa: B008 - it is never changed
        place: str = "",
    ):
        """
        Args:
            place: a folder in the run's where its files are, for what is not the run's main search; all of its trials
                keep their checkpoints.
        """
        (folder.path / place).mkdir(exist_ok=True)
        self.optuna = open_study(
            study, folder.path / place / _JOURNAL, *subject.objective.directions, epochs=subject.epochs(study)
        )
        self._study = study
        self._subject = subject
        self._folder = folder
        self._names = names
        self._keeps_all = bool(place)
        self._trials_folder = (folder.path / place / "trials").absolute()
        self._tracker = tracker
        self._parent = parent
        self._progress = progress

    def run(self, plan: Plan | int, started: float, space: TrialValues | None = None, reserve: float = 0.0) -> None:
        """Run the trials that the budget still allows; it counts from `started` (Unix time) in this process.

        Args:
            plan: under Ray Tune, or in this process, so many at a time (see `packing`).
            space: in place of the study's, whose starts are then left out as well.
            reserve: seconds of the time limit that are left for what follows the trials.
        """
        study, objective, epochs = self._study, self._subject.objective, self._subject.epochs(self._study)
        started -= self._folder.state.get("seconds", 0.0)
        deadline = math.inf if study.search.minutes is None else started + 60 * study.search.minutes - reserve
        node = None if isinstance(plan, int) else ray.get_runtime_context().get_node_id()
        rests = frozenset(rungs(study, epochs))
        context = SearchContext(study, self._subject, self._trials_folder, rests, deadline, node)
        earlier = self.optuna.get_trials(deepcopy=False)
        age = max((trial.last_step or 0 for trial in earlier if trial.state == TrialState.RUNNING), default=0)
        scheduler = build_scheduler(study, objective.directions[0], epochs, age)
        if not earlier and space is None:
            for words, parameters in starts(study).items():
                self.optuna.enqueue_trial(parameters, user_attrs={START: words})
        replay(scheduler, (trial.intermediate_values for trial in earlier if trial.state.is_finished()))
        recorder = Recorder(
            study, self._folder, self._trials_folder, self._tracker, self._parent, self.optuna, objective,
            self._progress, started, self._names, self._keeps_all,
        )  # fmt: skip
        searcher = TrialSearcher(
            self.optuna,
            space or build_space(study),
            sampler=study.search.sampler,
            trials=study.search.trials,
            deadline=deadline,
            check=study.with_values,
            stopped_by=study.search.stopping,
        )
        recorder.follow(searcher)
        if not searcher.is_over:
            with recorder.interruptible():
                if isinstance(plan, int):
                    packed = PackedTrials(context, searcher, scheduler, recorder)
                    packed.run(plan)
                    if alone := packed.words():
                        self._progress.note(alone)
                else:
                    self._tune(plan, context, searcher, scheduler, recorder)
        recorder.finish()

    def _tune(
        self, plan: Plan, context: SearchContext, searcher: TrialSearcher, scheduler: TrialScheduler, recorder: Recorder
    ) -> None:
        study = self._study
        is_population = study.search.is_population
        if is_population and working_copy.address_of(self._trials_folder) is not None and len(nodes()) > 1:
            raise ResourceError(
                f"storage: with '{study.search.scheduler}', trials on several nodes copy each other through a folder "
                "that all see; give the path of one, use the scheduler 'asha', or a cluster of one node"
            )
        trainable = PopulationTrainable if is_population else TrialTrainable
        if study.search.fidelity == "labels":
            trainable = LabelTrainable
        resources = {"cpu": plan.cpus, "gpu": plan.gpus}
        if study.scale.workers > 1:  # Ray Train asks for the workers' share; a trial's own process only waits for them
            trainable, resources = DistributedTrainable, {"cpu": 0, "gpu": 0, "memory": _WAITING_MEMORY}
        # Of a population, Tune carries models from one trial to another, which may be on another node.
        with _tune_settings(self._trials_folder.parent if is_population else None) as scratch:
            # Not `Tuner`, which saves itself, callbacks and searcher included, for a `restore` that is not needed.
            tune.run(
                tune.with_parameters(trainable, context=context),
                name=f"{self._folder.key}-{self._names.activity}",
                storage_path=scratch,
                resources_per_trial=resources,
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when it is over
                # All of a population, of which as many run at once as there are resources for.
                max_concurrent_trials=study.search.trials if is_population else plan.concurrency,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=_HANDED_ON) if is_population else None,
                reuse_actors=True,
                max_failures=study.scale.max_failures,
                raise_on_failed_trial=False,
                callbacks=[recorder],
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                verbose=0,
            )

    def confirmed(
        self,
        plan: Plan | int,
        objectives: Mapping[str, Objective],
        judge: Callable[[Study, Callable[[Trained], None]], Mapping[str, Mapping[str, float]]],
        reserve: float,
    ) -> pd.DataFrame:
        """Train the best trials and the study's own values again with new seeds; the table of `confirmation`.

        It is another sweep, of given points, and so resumes, tracks and shares out resources as any.

        Args:
            objectives: by split.
            judge: gives the metrics by split of a study's training, which its second argument brings to its end.
            reserve: as of `run`.
        """
        trials = self.optuna.get_trials(deepcopy=False)
        points = confirmation.points(self._study, ranked(trials, self._subject.objective))
        given = {"sampler": "random", "scheduler": "none", "trials": len(points)}
        study = self._study.with_values({f"search.{key}": value for key, value in given.items()})

        def name(number: int) -> str:
            candidate, values = points[number]
            return f"{candidate if candidate == DEFAULT else f'trial {candidate}'} seed {values['seed']}"

        names = Names("confirmation", "confirmation", name)
        again = Sweep(
            study, self._subject, self._folder, self._tracker, self._parent, self._progress, names, "confirmation"
        )
        again.run(plan, time.time(), lambda trial: points[trial.number][1], reserve)
        reruns = []
        for trial in again.optuna.get_trials(deepcopy=False):
            if trial.state == TrialState.COMPLETE and not was_stopped(trial):
                candidate, values = points[trial.number]
                reruns.append(Rerun(candidate, values["seed"], again._judged(trial, judge)))
        working_copy.remove(again._trials_folder)
        return confirmation.confirmation(objectives, reruns)

    def _judged(
        self, trial: FrozenTrial, judge: Callable[[Study, Callable[[Trained], None]], Mapping[str, Mapping[str, float]]]
    ) -> dict[str, dict[str, float]]:
        """The metrics of a trial by split, from the disk where they were computed before."""
        path = self._trials_folder.with_name(f"{trial.number}.json")
        if not path.exists():
            study = self._study.with_values(trial.user_attrs[VALUES])
            costs = {name: value for name, value in trial.user_attrs[METRICS].items() if name.startswith(COST)}
            splits = judge(study, lambda run: self.restore(run, trial))
            write_json(path, {split: {**metrics, **costs} for split, metrics in splits.items()})
        return json.loads(path.read_text(encoding="utf-8"))

    def best(self, confirmed: pd.DataFrame | None = None) -> FrozenTrial:
        """The best trial, by its confirmation where there is one.

        Raises:
            RunError: when no trial has a value.
        """
        trials = self.optuna.get_trials(deepcopy=False)
        order = ranked(trials, self._subject.objective)
        if order:
            first = DEFAULT if confirmed is None else confirmed["candidate"].iloc[0]
            return order[0] if first == DEFAULT else trials[int(first)]
        if not any(trial.state.is_finished() for trial in trials):
            minutes = self._study.search.minutes
            raise RunError(f"search.minutes: the {minutes:g} minutes were over before a trial began; raise the limit")
        trials = [trial for trial in trials if trial.state.is_finished()]
        error = trials[0].user_attrs.get(ERROR, "unknown")
        raise RunError(f"all {len(trials)} trials of {self._folder.path} failed, the first with: {error}")

    def restore(self, run: Trained, trial: FrozenTrial) -> None:
        """Bring a training of the trial's study, which has not begun, to where the trial stood."""
        state = load_checkpoint(checkpoint_path(self._trials_folder, trial.number), run.device)
        if state is None:  # removed by hand: the same training gives the same model
            state = train_changing(self._studies(trial), self._subject.begin).state_dict()
        run.load_state_dict(state)

    def changes(self, trial: FrozenTrial) -> dict[int, Study]:
        """The studies of a population's trial, by the epoch from which its model was trained with them, if several."""
        lineage = trial.user_attrs.get(LINEAGE, [])
        return {part["epoch"]: self._study.with_values(part["values"]) for part in lineage} if lineage[1:] else {}

    def _studies(self, trial: FrozenTrial) -> dict[int, Study]:
        return self.changes(trial) or {1: self._study.with_values(trial.user_attrs[VALUES])}

    def log(self, best: FrozenTrial, confirmed: pd.DataFrame | None = None) -> None:
        """The table of the trials, the best one's study and the plots: in the run's folder, and on the parent run.

        Args:
            confirmed: the table of `confirmed`, where the study asks for it.
        """
        values, path, objective = best.user_attrs[VALUES], self._folder.path, self._subject.objective
        # Tags and not parameters: MLflow keeps a parameter's first value, and a larger budget may find a better trial.
        tags = {f"best.{key}": value for key, value in values.items()}
        self._parent.set_tags({"polyshot.best_trial": f"trial-{best.number:04d}"} | tags)
        trials = trials_table(self.optuna, objective)
        write_table(path / _TRIALS, trials)
        trials.to_csv(path / _TRIALS_TABLE, index=False)
        (path / _BEST_STUDY).write_text(self._study.with_values(values).to_yaml(), encoding="utf-8")
        for name in (_TRIALS_TABLE, _BEST_STUDY):
            self._parent.log_artifact(path / name)
        if len(schedules := value_schedules(self.optuna)):
            write_table(path / _SCHEDULES, schedules)
            schedules.to_csv(path / _SCHEDULES_TABLE, index=False)
            self._parent.log_artifact(path / _SCHEDULES_TABLE)
        directions = dict(zip(objective.names, objective.directions, strict=True))
        # Values that changed on the way are no reason of what a trial reached in the end.
        is_constant = not self._study.search.is_population
        self._save_view(best, is_constant)
        found = importances(self.optuna, objective.names, self._study.seed) if is_constant else {}
        first, *_ = objective.names
        shares = found[first]["ped_anova"].to_dict() if found else {}
        about = {"objective": first, "direction": directions[first], "importances": shares, "objectives": directions}
        write_json(path / _SEARCHED, about)
        metrics = {name: task.metric for name, task in self._study.tasks.items()}
        responses = weight_responses(trials if is_constant else trials[:0], metrics, self._study.seed)
        for table, name in ((responses, _RESPONSES), (pd.concat(found) if found else responses[:0], _IMPORTANCES)):
            if len(table):
                table.to_csv(path / name, index=name == _IMPORTANCES)
                self._parent.log_artifact(path / name)
        figures = [
            *plots.search_figures(trials, directions, found, responses, path / "plots", confirmed),
            *optuna_figures(self.optuna, objective.names, found, path / "plots"),
        ]
        for figure in figures:
            self._parent.log_artifact(figure, "plots")

    def _save_view(self, best: FrozenTrial, is_constant: bool) -> None:
        """For MLflow's UI: the trials, the best first, with what they reached and what was searched."""
        values, objective = best.user_attrs[VALUES], self._subject.objective
        metrics = [*objective.logged_names, *(f"val/{name}" for name in validation_metrics(best))]
        if not is_constant:
            metrics += [f"value/{key}" for key in values]
        ascending = objective.directions[0] == "minimize"
        self._parent.save_view(metrics, list(values) if is_constant else [], ascending=ascending)

    def outcome(self, best: FrozenTrial) -> dict[str, Any]:
        """What the result's file says of every search: see `ended_search`."""
        trials = begun(self.optuna)
        return {
            "trials_begun": len(trials),
            "minutes": self._study.search.minutes,
            "seconds": self._folder.state["seconds"],
            "best_values": best.user_attrs[VALUES],
            "chosen": chosen_words(pareto_front(trials, self._subject.objective), self._subject.objective),
        }


def trials_table(optuna_study: optuna.Study, objective: Objective) -> pd.DataFrame:
    """One row for each trial that has ended, the best first.

    Columns: number, state (finished, stopped, failed), `front` where objectives are several (whether no other trial
    beats it in all) and `feasible` where there are constraints; the objectives by their names, epochs, `labels` where
    they are the fidelity (the training rows of the model), seconds, each value that was searched by its dotted key (of
    a population the last one; and whom the trial `copied`), each `task/metric` on validation, the costs that were asked
    for, and the reasons `stopped` and `error`.
    """
    ended = [trial for trial in optuna_study.get_trials(deepcopy=False) if trial.state.is_finished()]
    with_value = ranked(ended, objective)
    front = {trial.number for trial in pareto_front(ended, objective)}
    rows = []
    for trial in [*with_value, *(trial for trial in ended if trial.values is None)]:
        attributes = trial.user_attrs
        failed = trial.state == TrialState.FAIL
        objectives = dict(zip(objective.names, trial.values or [math.nan] * len(objective.names), strict=True))
        costs = {name: attributes.get(METRICS, {}).get(f"{COST}{name}") for name in objective.costs}
        began, ended_at = span(trial)
        rows.append(
            {
                "number": trial.number,
                "state": "failed" if failed else "stopped" if was_stopped(trial) else "finished",
                **({} if objective.is_one else {"front": trial.number in front}),
                **({"feasible": bool(trial.values) and is_feasible(trial)} if objective.bounds else {}),
                **objectives,
                "epochs": attributes.get(EPOCHS, 0),
                **({LABELS: attributes[LABELS]} if LABELS in attributes else {}),
                "seconds": ended_at - began,
                **attributes.get(VALUES, {}),
                **{name: value for name, value in validation_metrics(trial).items() if name not in objectives},
                **{name: value for name, value in costs.items() if name not in objectives},
                **({START: attributes[START]} if START in attributes else {}),
                **({COPIED: copied_words(trial)} if LINEAGE in attributes else {}),
                "stopped": attributes.get(STOPPED),
                "error": attributes.get(ERROR),
            }
        )
    return pd.DataFrame(rows)


def value_schedules(optuna_study: optuna.Study) -> pd.DataFrame:
    """How the models of a population's trials came about: a row for each trial and change of its values.

    Columns: number; from_epoch; trained_by, the number of the trial that trained it from this epoch on: the trial
    itself, or one whose model came to it by copying; the values by dotted key.
    """
    return pd.DataFrame(
        [
            {"number": trial.number, "from_epoch": part["epoch"], "trained_by": part["trial"], **part["values"]}
            for trial in optuna_study.get_trials(deepcopy=False)
            for part in trial.user_attrs.get(LINEAGE, [])
        ]
    )


def warm_up(plan: Plan) -> None:
    """Have Ray's idle processes, which become the trials' workers, import torch while the driver has other work."""
    module = TrialTrainable.__module__

    @ray.remote(num_cpus=plan.cpus)
    def warm() -> None:
        with suppress(ImportError):  # of that, the trials will tell
            importlib.import_module(module)

    for _ in range(plan.concurrency):
        warm.remote()


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['number']:04d}"


@contextmanager
def _tune_settings(place: Path | None = None) -> Iterator[str]:
    """Tune's environment for the length of its run; yields a folder for what it writes, none of which is needed after.

    Args:
        place: where that folder is, if not on this node alone.
    """
    before = {name: os.environ.get(name) for name in _TUNE_SETTINGS}
    os.environ.update(_TUNE_SETTINGS)
    for left in place.glob(f"{_SCRATCH}*") if place else ():  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    level = logging.getLogger("ray.tune").level
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place, ignore_cleanup_errors=True) as scratch:
            yield scratch
    finally:
        logging.getLogger("ray.tune").setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- the result on disk ----------------------------------------------------------------------------------------------


def search_digest(study: Study, *sections: str) -> str:
    """Changes with the search's settings and `sections`, of which all its trials are; not with its budget."""
    budget = {"trials": SMALLEST_POPULATION, "minutes": None, "concurrency": None, "confirm": None, "pack": "auto"}
    alike = study.with_values({f"search.{key}": value for key, value in budget.items()})
    return alike.digest(*sections, "search")


def ended_search(study: Study, verb: str, digest: str) -> tuple[Path, dict[str, Any]] | None:
    """The folder and the outcome of the newest search of this digest, when it has ended and used the study's budget."""
    folder = next(runs(study, verb, digest), None)
    if folder is None or not (folder / RESULT).exists():
        return None
    outcome = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if "minutes" not in outcome:  # of an earlier version: it is concluded once more, without training
        return None
    trials, minutes = study.search.trials, study.search.minutes
    is_used = (trials is not None and outcome["trials_begun"] >= trials) or (
        minutes is not None and (outcome["minutes"] or 0.0) >= minutes
    )
    return (folder, outcome) if is_used else None


def read_trials(folder: Path) -> pd.DataFrame:
    """The `trials_table` that a search left in its folder."""
    return read_table(folder / _TRIALS)
