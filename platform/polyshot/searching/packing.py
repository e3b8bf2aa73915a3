"""Trials of small networks in this process: those of equal shape as one stacked network, by Optuna's ask and tell.

Called by `Sweep` in place of Ray Tune where a search is of such trials: to start Ray, and a process for each trial that
runs at once, would take longer than the trials. Searcher, scheduler and recorder are the same; each trial reports, is
stopped, saved and recorded alone, and gives the very result that it gives alone.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import ray
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.schedulers import TrialScheduler

from polyshot.searching.protocol import error_words
from polyshot.searching.record import Recorder
from polyshot.searching.searcher import TrialSearcher
from polyshot.searching.space import build_space, probes
from polyshot.searching.trainable import REPORT_SECONDS, SearchContext, checkpoint_path, failed, result_of
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import TrainingRun
from polyshot.training.packed import PackedRuns, shape, why_alone

_SMALLEST, _LARGEST = 2, 16  # trials of a pack, where the study leaves it open
_ROUNDS = 5  # in which a sampler that learns is asked at least, so that it has something to learn from
_LEARN_NOTHING = ("random", "qmc")
_STARTING_SECONDS = 30.0  # of Ray and its workers
_FLOPS, _STEP_SECONDS = 2e10, 5e-4  # a processor's speed, and what a step costs besides: orders of magnitude
_PROBES = 10


def pack_size(study: Study, run: TrainingRun) -> tuple[int, str | None]:
    """How many trials are asked for at once to be packed in this process, 0 for none: they run under Ray Tune.

    Args:
        run: a training of the study that has not begun.

    Returns:
        The size, and where the study asks for packs that cannot be, the reason.
    """
    search = study.search
    if search.pack == "never" or (study.scale.threads or 1) > (os.cpu_count() or 1):  # Ray says what lacks
        return 0, None
    reason = _why_not(study)
    if isinstance(search.pack, int):
        return (0, reason) if reason else (search.pack, None)
    is_local = not (study.scale.address or os.environ.get("RAY_ADDRESS") or ray.is_initialized())
    if reason or not is_local or run.device.type != "cpu" or study.scale.engine == "ray" or not _is_short(study, run):
        return 0, None
    if search.trials is None:
        return _LARGEST // 2, None
    rounds = 1 if search.sampler in _LEARN_NOTHING else _ROUNDS
    return min(max(search.trials // rounds, _SMALLEST), _LARGEST), None


def _why_not(study: Study) -> str | None:
    """Why most trials of the search could not be packed, if so."""
    if "training_seconds" in study.search.objectives:
        return "training_seconds is an objective"
    if study.search.is_population:
        return f"the scheduler is {study.search.scheduler}"
    if study.search.fidelity != "epochs":
        return f"the fidelity is {study.search.fidelity}"
    space = build_space(study)
    reasons = [why_alone(study.with_values(space(trial))) for trial in islice(probes(study), _PROBES)]
    alone = [reason for reason in reasons if reason is not None]
    return max(alone, key=alone.count) if len(alone) > _PROBES / 2 else None


def _is_short(study: Study, run: TrainingRun) -> bool:
    """Whether one process has all trials done before several, which have to be started, would have."""
    rows, weights = len(run.train), sum(parameter.numel() for parameter in run.model.parameters())
    trial = study.training.epochs * (6 * rows * weights / _FLOPS + run.sampler.steps * _STEP_SECONDS)
    alone = trial * (study.search.trials or 100)
    return alone * (1 / 2 - 1 / (os.cpu_count() or 1)) < _STARTING_SECONDS


@dataclass
class _Packed:
    """A trial under way."""

    handle: Trial
    study: Study
    run: TrainingRun
    costs: Mapping[str, float]
    reported: int = 0
    saved: float = field(default_factory=time.monotonic)

    @property
    def number(self) -> int:
        return int(self.handle.config["number"])


class PackedTrials:
    """The trials of a sweep, as many as its searcher gives."""

    def __init__(self, context: SearchContext, searcher: TrialSearcher, scheduler: TrialScheduler, recorder: Recorder):
        self._context = context
        self._searcher = searcher
        self._scheduler = scheduler
        self._recorder = recorder
        self._begun = 0
        self._under_way: set[str] = set()
        self.alone: Counter[str] = Counter()  # why trials were trained alone

    def run(self, size: int) -> None:
        """Ask for `size` trials at a time, and train them, until the searcher has none."""
        while trials := self._ask(size):
            packs: dict[str, list[_Packed]] = {}
            for trial in trials:
                reason = why_alone(trial.study)
                self.alone.update([reason] if reason else [])
                packs.setdefault(shape(trial.study) if reason is None else str(trial.number), []).append(trial)
            for pack in packs.values():
                self._train(pack)

    def words(self) -> str | None:
        """What is to be told of trials that could not be packed."""
        if not self.alone:
            return None
        reasons = ", ".join(f"{reason} ({count})" for reason, count in self.alone.most_common())
        return f"{self.alone.total()} of {self._begun} trials could not be packed and were trained alone: {reasons}"

    def _ask(self, size: int) -> list[_Packed]:
        trials: list[_Packed] = []
        for _ in range(size):
            name = f"packed-{self._begun}"
            config = self._searcher.suggest(name)
            if not isinstance(config, dict):  # Tune's word for the end
                break
            self._begun += 1
            handle = Trial("packed", stub=True, trial_id=name, config=config)
            self._scheduler.on_trial_add(None, handle)  # type: ignore[arg-type]  # the schedulers here do not ask Tune
            try:
                trials.append(self._begin(handle))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this trial's and not the next one's
                self._tell(handle, failed(error_words(error)))
        return trials

    def _begin(self, handle: Trial) -> _Packed:
        context = self._context
        study = context.study.with_values(handle.config["values"])
        run = cast("TrainingRun", context.subject.begin(study))
        if (state := load_checkpoint(checkpoint_path(context.folder, handle.config["number"]), run.device)) is not None:
            run.load_state_dict(state)
        return _Packed(handle, study, run, context.subject.costs(study))

    # --- training ----------------------------------------------------------------------------------------------------

    def _train(self, pack: Sequence[_Packed]) -> None:
        try:
            self._advance(pack)
        except Exception as error:  # noqa: BLE001 - as above
            left = [trial for trial in pack if trial.handle.trial_id in self._under_way]
            if len(left) == 1:
                self._tell(left[0].handle, failed(error_words(error)))
                return
            for trial in left:  # whose fault it was is found out: each from its last checkpoint, alone
                self._train([self._begin(trial.handle)])

    def _advance(self, pack: Sequence[_Packed]) -> None:
        alive = list(pack)
        for trial in alive:
            self._recorder.on_trial_start(0, [], trial.handle)
        self._under_way = {trial.handle.trial_id for trial in alive}
        together = PackedRuns([trial.run for trial in alive]) if len(alive) > 1 else None
        while alive:
            started = time.monotonic()
            while True:
                if together is not None:
                    together.epoch()
                else:
                    next(alive[0].run.epochs(), None)
                if self._is_report(alive, started):
                    break
            left = [trial for trial in alive if self._report(trial)]
            if together is not None and len(left) < len(alive):
                together.keep([trial.run for trial in left])
            alive = left
            self._recorder.on_step_end(0, [])

    def _is_report(self, alive: Iterable[_Packed], started: float) -> bool:
        return time.monotonic() - started >= REPORT_SECONDS or any(
            trial.run.finished or len(trial.run.history) in self._context.rungs for trial in alive
        )

    def _report(self, trial: _Packed) -> bool:
        """Tell how a trial stands, and save it where it is time; whether it goes on."""
        run, is_late = trial.run, time.time() >= self._context.deadline
        reported, trial.reported = trial.reported, len(run.history)
        is_due = time.monotonic() - trial.saved >= trial.study.training.checkpoint_seconds
        if run.finished or is_late or is_due:
            state = run.state_dict()
            state["model"] = {name: value.clone() for name, value in state["model"].items()}  # and not the whole stack
            save_checkpoint(state, checkpoint_path(self._context.folder, trial.number))
            trial.saved = time.monotonic()
        objective = self._context.subject.objective
        return self._tell(trial.handle, result_of(objective, trial.costs, run.history, reported, run.finished, is_late))

    def _tell(self, handle: Trial, result: dict[str, Any]) -> bool:
        """As Tune's controller does; whether the trial goes on."""
        self._recorder.on_trial_result(0, [], handle, result)
        if not result[DONE]:
            decision = self._scheduler.on_trial_result(None, handle, result)  # type: ignore[arg-type]  # as above
            if decision != TrialScheduler.STOP:
                self._searcher.on_trial_result(handle.trial_id, result)
                return True
        if math.isfinite(result["objective"]):
            self._scheduler.on_trial_complete(None, handle, result)  # type: ignore[arg-type]  # as above
        self._searcher.on_trial_complete(handle.trial_id, result)
        self._under_way.discard(handle.trial_id)
        self._recorder.on_trial_complete(0, [], handle)
        return False
