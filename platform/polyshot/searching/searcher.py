"""Optuna behind Ray Tune: which values a trial gets, and what Optuna is told when it ends.

Optuna's journal in the run folder is the truth about a search: every suggestion and every end is on disk before the
search goes on, so that a killed search is taken up from it, and nothing that Tune itself saves is needed. Ray's
`OptunaSearch` tells Optuna less than happened; `TrialSearcher` says which trials were stopped, which failed and why.
"""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from polyshot.errors import ResourceError
from polyshot.searching.bohb import BOHBSampler
from polyshot.searching.protocol import (
    ERROR,
    LABELS,
    LINEAGE,
    OBJECTIVE,
    OBJECTIVES,
    RESOURCE,
    STOPPED,
    VIOLATIONS,
    error_words,
)
from polyshot.searching.scheduling import rungs
from polyshot.searching.space import TrialValues
from polyshot.seeds import derive_seed
from polyshot.study import Study

# User attributes of Optuna's trials, beside ERROR and STOPPED: the trial's values by dotted key, the metrics of the
# epoch that was kept, and how many epochs it was trained.
VALUES, METRICS, EPOCHS = "values", "metrics", "epochs"
BEGAN = "began"  # Unix seconds; a trial may have been asked for long before
START = "start"  # and where the trial comes from, if it was to start the search
COPIED = "copied"  # of a population's trial, whom it copied: [epoch, trial] of each time

_OPTUNA_STUDY = "search"
# These learn from complete trials only, and would go on suggesting what was stopped; they are told stopped trials as
# complete ones with the value reached so far, which is worse than the final one and so on the right side.
_LEARN_FROM_COMPLETE_ONLY = ("gp", "nsga2", "nsga3")
_SAMPLER_PACKAGES = {"cmaes": ("cmaes", "polyshot[cmaes]"), "gp": ("torch", "torch"), "qmc": ("scipy", "scipy")}
_POPULATION = 10  # of NSGA-II and NSGA-III; Optuna's 50 would be random search within the usual budgets


def check_sampler(name: str) -> None:
    """See that the sampler's optional package is there.

    Raises:
        ResourceError: when it is not, with the command that installs it.
    """
    package, requirement = _SAMPLER_PACKAGES.get(name, (None, None))
    if package and importlib.util.find_spec(package) is None:
        raise ResourceError(
            f"search.sampler: '{name}' needs the package '{package}'; install it with `pip install '{requirement}'` "
            "or choose 'tpe'"
        )


def open_journal(path: Path) -> optuna.storages.JournalStorage:
    """Optuna's storage in the file `path`, whole again if a process was killed while it wrote.

    The caller must be the only one who uses the file (it holds the run folder's lock).
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):  # a line cut short would make every later one unreadable
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def open_study(
    study: Study, journal: Path, *directions: Literal["maximize", "minimize"], epochs: int | None = None
) -> optuna.Study:
    """The Optuna study in `journal`, new or as it was left, with the study's sampler.

    Args:
        directions: of each objective.
        epochs: of a whole trial; by default as many as the study trains for.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_journal(journal)
    names = [summary.study_name for summary in storage.get_all_studies()]
    trials = 0
    if _OPTUNA_STUDY in names:
        trials = len(optuna.load_study(study_name=_OPTUNA_STUDY, storage=storage).get_trials(deepcopy=False))
    return optuna.create_study(
        storage=storage,
        sampler=build_sampler(study, trials, epochs),
        pruner=optuna.pruners.NopPruner(),
        study_name=_OPTUNA_STUDY,
        directions=directions,
        load_if_exists=True,
    )


def build_sampler(study: Study, trials: int, epochs: int | None = None) -> optuna.samplers.BaseSampler:
    """The study's sampler when there are `trials` trials already; `epochs` as in `open_study`.

    Samplers rebuild what they know from the storage. Their random numbers are a function of (seed, trials), so that a
    search that is taken up again does not draw the same ones a second time.
    """
    seed = derive_seed(study.seed, "sampler", trials) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match study.search.sampler:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(
                    seed=seed, consider_pruned_trials=study.search.stopping != "none", warn_independent_sampling=False
                )
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed, population_size=_POPULATION)
            case "nsga3":
                return optuna.samplers.NSGAIIISampler(seed=seed, population_size=_POPULATION)
            case "qmc":
                # The sequence is told from others by its seed, and its position is in the storage: one seed for all.
                return optuna.samplers.QMCSampler(
                    scramble=True,
                    seed=derive_seed(study.seed, "sampler") % 2**32,
                    independent_sampler=optuna.samplers.RandomSampler(seed=seed),
                    warn_independent_sampling=False,
                )
            case "tpe" if study.search.stopping == "asha":
                return BOHBSampler(rungs(study, epochs), seed, is_constrained=bool(study.search.constraints))
            case _:
                return optuna.samplers.TPESampler(seed=seed)


class TrialSearcher(OptunaSearch):
    """Hands trials to Tune and tells Optuna how each ended.

    Trials that were running when an earlier process died come first: under their own number, with their own values,
    and with their newest checkpoint, they are the same trials and not new ones.
    """

    def __init__(
        self,
        optuna_study: optuna.Study,
        values: TrialValues,
        *,
        sampler: str,
        trials: int | None,
        deadline: float,
        check: Callable[[Mapping[str, Any]], object] = lambda values: values,
        stopped_by: str = "asha",
    ):
        """
        Args:
            trials: how many trials there may be in the end, those of earlier processes included.
            deadline: Unix time after which no trial begins.
            check: raises when a trial's values make no valid study; that trial fails.
            stopped_by: the scheduler that stops trials, for their record.
        """
        mode = "max" if optuna_study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else "min"
        Searcher.__init__(self, metric=OBJECTIVE, mode=mode)
        self._study = optuna_study
        self._ot_trials: dict[str, optuna.Trial] = {}
        self._completed_trials: set[str] = set()
        self._values = values
        self._check = check
        self._trials = trials
        self._deadline = deadline
        self._stopped_by = stopped_by
        self._is_one = len(optuna_study.directions) == 1
        # Of several objectives, Optuna knows no pruned trials.
        is_complete = sampler in _LEARN_FROM_COMPLETE_ONLY or not self._is_one
        self._stopped_state = TrialState.COMPLETE if is_complete else TrialState.PRUNED
        self._begun = len(begun(optuna_study))
        self._interrupted = optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.numbers: dict[str, int] = {}  # Tune's trial id → Optuna's trial number

    @property
    def is_over(self) -> bool:
        """Whether no trial is left to begin or to take up again."""
        is_spent = self._trials is not None and self._begun >= self._trials
        return time.time() >= self._deadline or (is_spent and not self._interrupted)

    def set_search_properties(
        self,
        metric: str | None,
        mode: str | None,
        config: dict,  # noqa: ARG002
        **spec: Any,  # noqa: ARG002
    ) -> bool:
        """The searcher knows its own metric, mode and space; Tune has nothing to add."""
        return metric is None and mode is None

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """`number`, `values` by dotted key and Optuna's `parameters` that make them, of the next trial; or FINISHED."""
        while (trial := self._next()) is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    values = self._values(trial)
                trial.set_user_attr(VALUES, values)
                self._check(values)
            except Exception as error:  # noqa: BLE001 - the space may be the user's; its mistake costs one trial
                self._fail(trial, error_words(error))
                continue
            self._ot_trials[trial_id] = trial
            self.numbers[trial_id] = trial.number
            last = trial.user_attrs.get(LINEAGE, [{"values": values, "parameters": trial.params}])[-1]
            return {"number": trial.number, "values": last["values"], "parameters": last["parameters"]}
        return Searcher.FINISHED  # type: ignore[return-value]  # a word that Tune knows

    def _next(self) -> optuna.Trial | None:
        if self.is_over:
            return None
        if self._interrupted:
            return optuna.Trial(self._study, self._interrupted.pop(0)._trial_id)
        self._begun += 1
        return self._study.ask()

    def on_trial_start(self, trial_id: str) -> None:
        """The trial's training begins, or goes on after an earlier process died."""
        trial = self._ot_trials[trial_id]
        if BEGAN not in trial.user_attrs:
            trial.set_user_attr(BEGAN, time.time())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._ot_trials[trial_id]
        self._note_lineage(trial, result)
        self._report(trial, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended: by itself, stopped, or failed."""
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        trial = self._ot_trials[trial_id]
        result = result or {}
        self._note_lineage(trial, result)
        values: list[float] = result.get(OBJECTIVES) or [math.nan]
        violations: dict[str, float] = result.get(VIOLATIONS) or {}
        if result.get("metrics"):
            trial.set_user_attr(METRICS, dict(result["metrics"]))
            trial.set_user_attr(EPOCHS, result["epoch"])
        if LABELS in result:
            trial.set_user_attr(LABELS, result[LABELS])
        if error:
            self._fail(trial, "the trial's process died each time it was started (killed, or out of memory)")
        elif result.get(ERROR):
            self._fail(trial, result[ERROR])
        elif not all(map(math.isfinite, values)):
            self._fail(trial, "the objective is not a number: training diverged, or the metric is undefined")
        elif broken := [name for name, value in violations.items() if not math.isfinite(value)]:
            self._fail(trial, f"the constraint '{broken[0]}' is about what is not a number: the metric is undefined")
        else:
            for name, value in violations.items():
                trial.set_constraint(name, value)
            self._report(trial, result)
            is_complete = bool(result.get("finished")) or self._stopped_state == TrialState.COMPLETE
            if not result.get("finished"):
                trial.set_user_attr(STOPPED, result.get(STOPPED) or self._stopped_by)
            self._study.tell(
                trial, values if is_complete else None, TrialState.COMPLETE if is_complete else TrialState.PRUNED
            )

    def _note_lineage(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        """Of a population's trial, its last values in place of those that it began with."""
        lineage, before = result.get(LINEAGE), trial.user_attrs.get(LINEAGE)
        if lineage is None or lineage == before:
            return
        if len(lineage) > 1:
            trial.set_user_attr(
                COPIED, [*trial.user_attrs.get(COPIED, []), [lineage[-1]["epoch"] - 1, lineage[-2]["trial"]]]
            )
        trial.set_user_attr(VALUES, lineage[-1]["values"])
        trial.set_user_attr(LINEAGE, lineage)

    def _report(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        value, epoch, resource = (result.get(name) for name in (OBJECTIVE, "epoch", RESOURCE))
        if value is None or not math.isfinite(value):
            return
        if not self._is_one or resource != epoch:  # Optuna takes reports of one objective only, and one number of each
            trial.set_user_attr(EPOCHS, epoch)
        known = self._study._storage.get_trial(trial._trial_id).intermediate_values
        # A trial that was taken up again repeats the epochs since its checkpoint; Optuna has them already.
        if self._is_one and resource is not None and resource not in known:
            trial.report(value, resource)

    def _fail(self, trial: optuna.Trial, words: str) -> None:
        trial.set_user_attr(ERROR, words)
        self._study.tell(trial, state=TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have begun: all but those that are to start the search and have not been asked for."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def span(trial: FrozenTrial) -> tuple[float, float]:
    """When the trial began and ended, in Unix seconds; the end is NaN while it runs."""
    asked, ended = trial.datetime_start, trial.datetime_complete
    # A trial whose values made no study ended before it began.
    began = trial.user_attrs.get(BEGAN) or (asked.timestamp() if asked else math.nan)
    return began, ended.timestamp() if ended else math.nan


def was_stopped(trial: FrozenTrial) -> bool:
    """Whether the trial was ended before it was done, whatever its sampler was told."""
    return STOPPED in trial.user_attrs
