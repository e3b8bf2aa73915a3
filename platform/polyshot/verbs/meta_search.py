"""`polyshot meta --search`: meta-training again and again with other values; the best learner is judged as any other.

Trials are children of one MLflow run of kind `meta`. The run folder holds what `polyshot adapt` takes up, and all that
a killed search needs to go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from polyshot.cluster.ray import nodes, ray_session
from polyshot.errors import Problem, StudyError
from polyshot.meta.episodes import EpisodeSource, build_source
from polyshot.meta.training import NOT_FINITE, MetaRun
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
from polyshot.study.search import IMPROVEMENT, Bound
from polyshot.tracking.store import resolve
from polyshot.tracking.tracker import Tracker
from polyshot.training.loop import Epoch
from polyshot.training.processor import use_processor
from polyshot.verbs.best_found import BestFound
from polyshot.verbs.meta import SECTIONS, MetaResult, begin, conclude, read_result, train_distributed
from polyshot.verbs.recording import recorded

# What meta-training reads, and what of it must be the same in all trials for their validation metrics to be compared.
_SEARCHED = ("meta.", "model.encoder.")
_FIXED = (
    *("meta.episodes.", "meta.iterations", "meta.validate_every", "meta.validation_tasks"),
    *("meta.test_tasks", "meta.test_steps"),
)


class MetaSearchResult(BestFound[MetaResult]):
    """What a search of meta-learning gave.

    `epochs` of its trials are looks at the validation tasks; `best` is the best trial's learner, judged on test tasks
    as by `polyshot meta`.
    """


@dataclass(frozen=True)
class MetaLearning:
    """The subject of these searches: meta-training on one source of episodes. An epoch lies between two looks."""

    source: EpisodeSource

    @property
    def objective(self) -> Objective:
        # The metric leaves out tasks that diverged: a trial where some did must not win by it.
        none_diverged = Bound(NOT_FINITE, is_lower=False, value=0.0)
        return Objective((f"{self.source.name}/{self.source.objective.metric}",), {}, (none_diverged,))

    def epochs(self, study: Study) -> int:
        return math.ceil(study.meta.iterations / study.meta.validate_every)

    def begin(self, study: Study) -> MetaRun:
        return begin(study, self.source)

    def costs(self, study: Study) -> dict[str, float]:  # noqa: ARG002
        return {}

    def train_distributed(self, study: Study, folder: Path, on_epoch: Callable[[Epoch], None]) -> dict[str, Any]:
        return train_distributed(study, self.source, folder, on_epoch)


def meta_search(
    study: Study,
    *,
    table: pd.DataFrame | None = None,
    baselines: bool = True,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> MetaSearchResult:
    """Search `study.search`'s spaces for the learner that does best on validation tasks, and judge it on test tasks.

    A search that was interrupted goes on; one that has ended goes on when its budget was raised, and otherwise returns
    what it found.

    Args:
        table: the rows to learn from, in place of `data.source`.
        baselines: also judge what the best learner has to beat.
        fresh: start anew in any case.

    Raises:
        PolyshotError: for a space that does not fit, tasks that cannot be learnt from, too few CPUs, a missing sampler,
            a tracking store that cannot be used, a search whose trials all failed.
    """
    started = time.time()
    check_sampler(study.search.sampler)
    check_fixed_epochs(study)
    check_space(study, _refusal)
    starts(study, with_mlflow=False)
    digest = search_digest(study, *SECTIONS)
    if not fresh and (found := ended_search(study, "meta", digest)) and (found[1]["baselines"] or not baselines):
        return MetaSearchResult.read(study, *found, read_result)
    store = resolve(study)
    store.check()
    use_processor(study)
    source = build_source(study, table)
    for note in (*getattr(source, "notes", []), store.words):
        progress.note(note)
    subject = MetaLearning(source)
    _check_objective(study, subject.objective)
    begin(study, source, note=progress.note)  # what cannot be built is refused before anything is written
    with ray_session(study):
        plan = plan_trials(study, nodes())
        warm_up(plan)
        with (
            Tracker.open(study) as tracker,
            recorded(tracker, study, "meta", digest, fresh=fresh, reopen_finished=True) as recording,
        ):
            progress = recording.kept(progress)
            folder, parent = recording.folder, recording.run
            sweep = Sweep(study, subject, folder, tracker, parent, progress)
            sweep.run(plan, started)
            best = sweep.best()
            run = subject.begin(study.with_values(best.user_attrs[VALUES]))
            sweep.restore(run, best)
            conclude(run, baselines, folder.path, parent, progress)
            sweep.log(best)
    outcome = sweep.outcome(best) | {"baselines": baselines, "mlflow_id": recording.settle(progress)}
    write_json(folder.path / RESULT, outcome)
    recording.finish(progress)
    return MetaSearchResult.read(study, folder.path, outcome, read_result)


def _refusal(key: str) -> str | None:
    """Why a key cannot be searched, if it cannot."""
    if key.startswith(_FIXED):
        return "must be the same in all trials, whose validation metrics are compared; remove it from the space"
    if not key.startswith(_SEARCHED):
        return "plays no part in meta-learning; search keys of `meta` and `model.encoder`, as the space 'meta' does"
    return None


def _check_objective(study: Study, objective: Objective) -> None:
    """
    Raises:
        StudyError: when the study asks for another objective than there is.
    """
    (name,) = objective.names
    if study.search.objective not in (IMPROVEMENT, name):  # the former is what stands there by itself
        message = f"a search of meta-learning optimises {name} on validation tasks; remove this key"
        raise StudyError([Problem("search.objective", message)])
    for key in ("constraints", "confirm"):
        if getattr(study.search, key):
            raise StudyError([Problem(f"search.{key}", "a search of meta-learning knows none; remove this key")])
