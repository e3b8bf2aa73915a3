"""What others see of a search while it runs: MLflow runs of trials and baselines, progress, checkpoints on disk.

A callback of Ray Tune in the driver. Optuna's journal says how trials stand; this module only passes it on, each end
once, also where an earlier process died before it could.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.experiment import Trial

from polyshot import working_copy
from polyshot.outcomes import curve, log_baseline, log_outcome
from polyshot.progress import Progress
from polyshot.run_folder import RunFolder
from polyshot.searching.objective import COST, Objective
from polyshot.searching.protocol import ERROR, LINEAGE, OBJECTIVES, STOPPED
from polyshot.searching.ranking import ranked
from polyshot.searching.searcher import COPIED, EPOCHS, METRICS, START, VALUES, TrialSearcher, span, was_stopped
from polyshot.searching.trainable import trial_folder
from polyshot.study import Study
from polyshot.study.search import IMPROVEMENT
from polyshot.tracking.tracker import Run, Status, Tracker
from polyshot.training.baselines import Baseline
from polyshot.training.loop import Epoch
from polyshot.training.metrics import is_better

_KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Names:
    """What a sweep's trials are called.

    Attributes:
        activity: in the progress.
        kind: of their runs in MLflow.
        run: the run's name by the trial's number.
    """

    activity: str = "search"
    kind: str = "trial"
    run: Callable[[int], str] = "trial {:04d}".format


class Recorder(tune.Callback):
    """Logs trials to MLflow, shows how the search stands, and keeps the checkpoints of the best trials only."""

    def __init__(
        self,
        study: Study,
        folder: RunFolder,
        trials_folder: Path,
        tracker: Tracker,
        parent: Run,
        optuna_study: optuna.Study,
        objective: Objective,
        progress: Progress,
        started: float,
        names: Names,
        keeps_all: bool,
    ):
        """
        Args:
            started: the Unix time from which the search's time counts, earlier processes' use included.
            keeps_all: the checkpoints of all trials, and not only of the best.
        """
        self._study = study
        self._folder = folder
        self._trials_folder = trials_folder
        self._tracker = tracker
        self._parent = parent
        self._optuna = optuna_study
        self._objective = objective
        self._progress = progress
        self._started = started
        self._names = names
        self._keeps_all = keeps_all
        self._began = time.time()
        self._interrupted = False
        self._searcher: TrialSearcher | None = None
        self._runs: dict[int, Run] = {}
        self._logged: dict[int, int] = {}  # trial → the last epoch of its learning curve
        ended = self._ended()
        self._ended_before = len(ended)
        # Optuna was told of these epochs, and MLflow right after.
        for trial in optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._logged[trial.number] = trial.user_attrs.get(EPOCHS, trial.last_step or 0)
        kept = working_copy.names(trials_folder)
        self._kept = {trial.number for trial in ended if trial_folder(trials_folder, trial.number).name in kept}
        for trial in ended:
            self._record_end(trial)
        progress.start(self._names.activity, study.search.trials)
        self._show()

    def follow(self, searcher: TrialSearcher) -> None:
        """The searcher whose trials Tune will speak of."""
        self._searcher = searcher

    # --- what Tune calls ---------------------------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        assert self._searcher is not None
        self._searcher.on_trial_start(trial.trial_id)
        self._run(self._number(trial))

    def on_trial_result(  # Tune passes all by name
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict,
        **info: Any,  # noqa: ARG002
    ) -> None:
        number = self._number(trial)
        last = self._logged.get(number, 0)
        run = self._run(number)
        if all(map(math.isfinite, result[OBJECTIVES])):
            # Before any other metric: MLflow's comparison of runs opens with the one that was logged first.
            run.log_metrics(self._named(result[OBJECTIVES]), step=result["epoch"])
        for values in result["epochs"]:
            epoch = Epoch(**values)
            if epoch.number > last:
                run.log_metrics(curve(epoch) | _in_force(result), step=epoch.number)
                self._logged[number] = epoch.number

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        **info: Any,  # noqa: ARG002
    ) -> None:
        self._on_end(self._number(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial, **info)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        if self._interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, Ctrl-C ends the search at Tune's next step; the second one at once.

        Raised wherever Tune and Ray happen to be, an interrupt can end in code of theirs that catches everything.
        """
        if threading.current_thread() is not threading.main_thread():  # which alone is sent signals
            yield
            return

        def remember(*signal_and_frame: object) -> None:  # noqa: ARG001
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        before = signal.signal(signal.SIGINT, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self._interrupted:
            raise KeyboardInterrupt

    # --- ends --------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The search is over: record what Tune never heard of (trials whose values made no study)."""
        for trial in self._ended():
            self._record_end(trial)
        self.save_time()
        self._progress.finish(self._names.activity, self._words())

    def save_time(self) -> None:
        """Keep the time that was used, for the limit in minutes of the process that goes on."""
        self._folder.state["seconds"] = time.time() - self._started
        self._folder.set_status("running")

    def _on_end(self, number: int) -> None:
        self._record_end(self._trial(number))
        self._keep_best(number)
        self.save_time()
        self._show()

    def _record_end(self, trial: FrozenTrial) -> None:
        with _Once(self._optuna, f"trial-{trial.number:04d}") as is_new:
            if not is_new:
                return
            run = self._run(trial.number)
            if START in trial.user_attrs:
                run.set_tags({"polyshot.start": trial.user_attrs[START]})
            if COPIED in trial.user_attrs:
                run.set_tags({"polyshot.copied": copied_words(trial)})
            if metrics := validation_metrics(trial):
                found = trial.user_attrs[METRICS]
                run.log_metrics(self._named(self._objective.values(found)), step=trial.user_attrs[EPOCHS])
                improvement = self._objective.improvement(found)
                log_outcome(
                    run, {"validation": metrics}, {"validation": improvement} if improvement is not None else {}
                )
                run.log_metrics({name: value for name, value in found.items() if name.startswith(COST)})
            status: Status = "FINISHED"
            if trial.state == TrialState.FAIL:
                status = "FAILED"
                run.set_tags({"polyshot.error": trial.user_attrs.get(ERROR, "unknown")})
            elif was_stopped(trial):
                status = "KILLED"
                run.set_tags({"polyshot.stopped": trial.user_attrs[STOPPED]})
            run.end(status, span(trial)[1])

    def _run(self, number: int) -> Run:
        if number not in self._runs:
            trial, name = self._trial(number), self._names.run(number)
            self._runs[number] = self._tracker.start_run(
                name,
                key=f"{self._folder.key}/{name.replace(' ', '-')}",
                parent=self._parent,
                # All that was searched, also where it is the study's own value: compared runs show it. In a population
                # values change; they are metrics.
                params={} if self._study.search.is_population else trial.user_attrs.get(VALUES, {}),
                tags={"polyshot.kind": self._names.kind},
                began=span(trial)[0],
            )
        return self._runs[number]

    def _keep_best(self, number: int) -> None:
        if self._keeps_all:
            return
        self._kept.add(number)
        trials = self._optuna.get_trials(deepcopy=False)
        order = ranked((trials[number] for number in self._kept), self._objective)
        best = {trial.number for trial in order[:_KEPT_CHECKPOINTS]}
        for other in self._kept - best:
            working_copy.remove(trial_folder(self._trials_folder, other))
        self._kept = best

    # --- how it stands -----------------------------------------------------------------------------------------------

    def _show(self) -> None:
        self._progress.advance(self._names.activity, len(self._ended()), self._words())
        if not self._keeps_all and (best := self._best()):
            self._progress.best(best, self._best_of_any())

    def _words(self) -> str:
        ended = self._ended()
        failed = sum(trial.state == TrialState.FAIL for trial in ended)
        stopped = sum(was_stopped(trial) for trial in ended)
        now = time.time()
        minutes = (now - self._began) / 60
        words = [f"{len(ended) - failed - stopped} done, {stopped} stopped, {failed} failed"]
        left = []  # minutes
        if minutes > 0 and (rate := (len(ended) - self._ended_before) / minutes):
            words.append(f"{rate:.3g} a minute")
            if (trials := self._study.search.trials) is not None:
                left.append((trials - len(ended)) / rate)
        if (limit := self._study.search.minutes) is not None:
            used = (now - self._started) / 60
            words.append(f"{used:.1f} of {limit:g} minutes")
            left.append(limit - used)
        if left and min(left) > 0:
            words.append(f"about {min(left):.2g} minutes left")
        return "; ".join(words)

    def _best(self) -> dict[str, float]:
        """What the best trial so far has reached: its objectives, Δm and each task's metric."""
        order = ranked(self._ended(), self._objective)
        if not order:
            return {}
        metrics = order[0].user_attrs[METRICS]
        objectives = dict(zip(self._objective.names, self._objective.values(metrics), strict=True))
        improvement = self._objective.improvement(metrics)
        return objectives | ({} if improvement is None else {IMPROVEMENT: improvement}) | validation_metrics(order[0])

    def _best_of_any(self) -> dict[str, float]:
        """Of each task's metric, the best that any trial has reached."""
        best: dict[str, float] = {}
        for trial in self._ended():
            for name, value in validation_metrics(trial).items():
                if math.isfinite(value) and (name not in best or is_better(name.rpartition("/")[2], value, best[name])):
                    best[name] = value
        return best

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        """The objectives' values as MLflow's metrics."""
        return dict(zip(self._objective.logged_names, values, strict=True))

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in self._optuna.get_trials(deepcopy=False) if trial.state.is_finished()]

    def _trial(self, number: int) -> FrozenTrial:
        return self._optuna.get_trials(deepcopy=False)[number]

    def _number(self, trial: Trial) -> int:
        assert self._searcher is not None
        return self._searcher.numbers[trial.trial_id]


def _in_force(result: Mapping[str, Any]) -> dict[str, float]:
    """Of a population's trial, the values that it is trained with, as metrics: `value/<dotted key>`, the numbers."""
    values = result[LINEAGE][-1]["values"] if LINEAGE in result else {}
    return {f"value/{key}": value for key, value in values.items() if isinstance(value, float | int)}


def copied_words(trial: FrozenTrial) -> str | None:
    """Whom a population's trial copied, and when."""
    times = trial.user_attrs.get(COPIED, [])
    return ", ".join(f"trial {other} after epoch {epoch}" for epoch, other in times) or None


def log_baseline_once(
    tracker: Tracker, parent: Run, optuna_study: optuna.Study, key: str, params: Mapping[str, Any], baseline: Baseline
) -> None:
    """`log_baseline`, once however often the search is taken up again."""
    with _Once(optuna_study, key.rpartition("/")[2]) as is_new:
        if is_new:
            log_baseline(tracker, parent, key, params, baseline)


class _Once:
    """What is done inside happens once in the life of a search: `with _Once(…) as is_new`."""

    def __init__(self, optuna_study: optuna.Study, what: str):
        self._optuna = optuna_study
        self._key = f"recorded/{what}"

    def __enter__(self) -> bool:
        self._is_new = self._key not in self._optuna.user_attrs
        return self._is_new

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._is_new:
            self._optuna.set_user_attr(self._key, True)


def validation_metrics(trial: FrozenTrial) -> dict[str, float]:
    """`task/metric` of the epoch that the trial kept."""
    metrics: Mapping[str, float] = trial.user_attrs.get(METRICS, {})
    return {
        name.removeprefix("val/"): value
        for name, value in metrics.items()
        if name.startswith("val/") and name != "val/loss"
    }
