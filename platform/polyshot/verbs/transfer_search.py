"""`polyshot transfer --search`: methods and their parameters searched; the best one is judged beside the study's own.

A trial trains one method, `searched`, at the study's largest budget. Trials are children of one MLflow run of kind
`transfer`, and the run folder holds all that a killed search needs to go on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from polyshot.cluster.ray import nodes, ray_session
from polyshot.errors import Problem as StudyProblem
from polyshot.errors import ResourceError, StudyError
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import write_json
from polyshot.searching.objective import Objective
from polyshot.searching.protocol import RESULT
from polyshot.searching.scheduling import check_fixed_epochs, plan_trials
from polyshot.searching.searcher import VALUES, check_sampler
from polyshot.searching.space import check_space
from polyshot.searching.starts import starts
from polyshot.searching.sweep import Sweep, ended_search, search_digest, warm_up
from polyshot.study import Study
from polyshot.study.transfer import SEARCHED
from polyshot.tracking.store import resolve
from polyshot.tracking.tracker import Tracker
from polyshot.training.processor import use_processor
from polyshot.transfer.problem import Problem, Sources, TargetData
from polyshot.transfer.start import TransferRun
from polyshot.transfer.start import fresh as from_scratch
from polyshot.transfer.trials import Trial, trials_of
from polyshot.verbs.best_found import BestFound
from polyshot.verbs.recording import recorded
from polyshot.verbs.transfer import (
    KEPT,
    SECTIONS,
    TransferResult,
    check_scale,
    checked_trials,
    conclude,
    find_sources,
    read_result,
)

_METHOD = f"transfer.methods.{SEARCHED}."


class TransferSearchResult(BestFound[TransferResult]):
    """What a search of transfer gave.

    `best_values` are those of the method `searched`; `best` is its methods compared, as by `polyshot transfer`.
    """


@dataclass(frozen=True)
class TransferLearning:
    """The subject of these searches: the method `searched` on one target, at its largest budget."""

    target: TargetData
    sources: Sources
    objective: Objective

    def epochs(self, study: Study) -> int:
        return study.training.epochs

    def begin(self, study: Study) -> TransferRun:
        return self.trial(study).begin()

    def trial(self, study: Study) -> Trial:
        problem = _largest(replace(self.target, study=study), self.sources)
        return Trial(SEARCHED, study.transfer.methods[SEARCHED], problem)

    def costs(self, study: Study) -> dict[str, float]:  # noqa: ARG002
        return {}

    def train_distributed(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise ResourceError("scale.workers: each trial of transfer trains in one process; set it to 1")


def transfer_search(
    study: Study, *, table: pd.DataFrame | None = None, fresh: bool = False, progress: Progress = SILENT
) -> TransferSearchResult:
    """Search `study.search`'s spaces for the method that does best on validation, and compare it with the study's own.

    Args:
        table: the rows to learn from, in place of `data.source`.
        fresh: start anew in any case.

    Raises:
        PolyshotError: as `transfer`; and for a space that does not fit, too few CPUs, a missing sampler, a search whose
            trials all failed.
    """
    started = time.time()
    check_scale(study)
    check_sampler(study.search.sampler)
    check_fixed_epochs(study)
    check_space(study, _refusal)
    starts(study, with_mlflow=False)
    _check_objective(study)
    store = resolve(study)
    store.check()
    sources = find_sources(study, progress)
    digest = f"{search_digest(study, *SECTIONS)}-{sources.main.digest}"
    if not fresh and (found := ended_search(study, "transfer", digest)):
        return TransferSearchResult.read(study, *found, read_result)
    targets = TargetData.folds(study, table)
    target = targets[0]
    for note in (*target.own.notes, *sources.main.notes(target.table, study), store.words):
        progress.note(note)
    use_processor(study, target.own)
    checked_trials(targets, sources)
    subject = TransferLearning(target, sources, Objective.of(study, _scratch(target, sources)))
    with ray_session(study):
        plan = plan_trials(study, nodes())
        warm_up(plan)
        with (
            Tracker.open(study) as tracker,
            recorded(tracker, study, "transfer", digest, fresh=fresh, reopen_finished=True) as recording,
        ):
            progress = recording.kept(progress)
            folder = recording.folder
            sweep = Sweep(study, subject, folder, tracker, recording.run, progress)
            sweep.run(plan, started)
            best = sweep.best()
            values = best.user_attrs[VALUES]
            chosen = [replace(fold, study=fold.study.with_values(values)) for fold in targets]
            cache = folder.path / KEPT if fresh else study.storage_folder / KEPT
            trials = [trial for fold, own in enumerate(chosen) for trial in trials_of(own, sources, fold)]
            conclude(study.with_values(values), chosen, trials, cache, recording, progress)
            sweep.log(best)
    outcome = sweep.outcome(best) | {"mlflow_id": recording.settle(progress)}
    write_json(folder.path / RESULT, outcome)
    recording.finish(progress)
    return TransferSearchResult.read(study, folder.path, outcome, read_result)


def _largest(target: TargetData, sources: Sources) -> Problem:
    """The problem of the trials: the largest budget, in the first repetition."""
    budgets = target.study.transfer.budgets
    numbers = [budget for budget in budgets if isinstance(budget, int)]
    return Problem.of(target, sources, "all" if "all" in budgets else max(numbers), 0)


def _scratch(target: TargetData, sources: Sources) -> dict[str, float]:
    """The chosen metric of each task on validation without transfer: what improvement is measured against."""
    problem = _largest(target, sources)
    run = TransferRun(from_scratch(problem), problem)
    for _ in run.epochs():
        pass
    _, metrics = run.judged(run.prepared.validation)
    return {name: metrics[name] for task, own in target.study.tasks.items() for name in [f"{task}/{own.metric}"]}


def _refusal(key: str) -> str | None:
    """Why a key cannot be searched, if it cannot."""
    if not key.startswith(_METHOD):
        return f"plays no part in a trial of transfer; search keys of `{_METHOD}`, as the space 'transfer' does"
    return None


def _check_objective(study: Study) -> None:
    """
    Raises:
        StudyError: when the study asks for the cost of a model, which methods of transfer do not choose.
    """
    named = {*study.search.objectives, *(bound.name for bound in study.search.bounds)}
    if costs := sorted(named & {"parameters", "latency_ms"}):
        message = f"'{costs[0]}' is not measured in searches of transfer; remove it"
        raise StudyError([StudyProblem("search.objective", message)])
    if study.search.confirm:
        raise StudyError([StudyProblem("search.confirm", "is for `polyshot search`; remove it")])
