"""One trial in a worker process of Ray Tune: a study with other values, trained epoch by epoch.

A process that has imported torch and holds the data trains one trial after another (`reset_config`); what goes wrong in
a trial is therefore reported as its result and never raised, since an exception would cost the process. The trial's
model stays in its folder, and only numbers travel to the driver. What is trained is the subject's affair.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray
from ray import tune
from ray.tune.result import DONE

from polyshot import working_copy
from polyshot.searching.objective import COST, Objective
from polyshot.searching.protocol import (
    CURRENT,
    DEADLINE,
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
from polyshot.searching.subject import MultiTaskLearning, Subject, Trained
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import Epoch, TrainingRun
from polyshot.training.processor import use_processor

# Epochs of a small model take milliseconds, a round trip to the driver as well: report in portions.
REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class SearchContext:
    """What all trials of a search have in common; sent once to every worker process."""

    study: Study
    subject: Subject
    folder: Path  # of the trials' folders
    rungs: frozenset[int]  # epochs that must be the last of a report
    deadline: float  # Unix time
    node: str | None = None  # the driver's


def trial_folder(trials: Path, number: int) -> Path:
    return trials / f"trial-{number:04d}"


def checkpoint_path(trials: Path, number: int) -> Path:
    return trial_folder(trials, number) / "checkpoint.pt"


def result_of(
    objective: Objective, costs: Mapping[str, float], history: list[Epoch], reported: int, finished: bool, is_late: bool
) -> dict[str, Any]:
    """What a trial tells of its training so far.

    It holds `objective`, `objectives`, `violations` and `metrics` (pairs, costs among them) of the epoch that would be
    kept, the best by `training.monitor` so far; `current`, the objective of the last one; `epoch`, that last
    one, and `resource`, the same to schedulers; `epochs`, those after the `reported` ones, as dictionaries;
    `finished`, trained to its end; and `error` or `stopped`, if that is why it ended.
    """
    best = next((epoch for epoch in reversed(history) if epoch.is_best), None)
    known = {**costs, "training_seconds": sum(epoch.seconds for epoch in history)}
    asked = {f"{COST}{name}": known[name] for name in objective.costs}
    metrics = (best.metrics if best else {}) | asked
    values = objective.values(metrics) if best else [math.nan]
    return {
        OBJECTIVE: values[0],
        OBJECTIVES: values,
        CURRENT: objective.values(history[-1].metrics | asked)[0],
        VIOLATIONS: objective.violations(metrics) if best else {},
        "metrics": list(metrics.items()) if best else [],
        "epoch": history[-1].number,
        RESOURCE: history[-1].number,
        "epochs": [asdict(epoch) for epoch in history[reported:]],
        "finished": finished,
        STOPPED: DEADLINE if is_late and not finished else None,
        DONE: finished or is_late,
    }


def failed(words: str) -> dict[str, Any]:
    """The result of a trial that raised."""
    nothing = {OBJECTIVE: math.nan, OBJECTIVES: [math.nan], "epoch": 0, "epochs": [], "finished": False}
    return nothing | {ERROR: words, DONE: True}


class TrialTrainable(tune.Trainable):
    """Trains the trial whose `number` and `values` are its config; a step is some epochs, its result as `result_of`."""

    _error: str | None

    def setup(self, config: dict[str, Any], context: SearchContext | None = None) -> None:
        assert context is not None
        self._context = context
        use_processor(context.study)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._close()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._close()

    def step(self) -> dict[str, Any]:
        if self._error is None:
            try:
                return self._advance()
            except Exception as error:  # noqa: BLE001 - as in _begin
                self._error = error_words(error)
        return failed(self._error)

    def _begin(self, config: dict[str, Any]) -> None:
        self._error = None
        self._reported = 0
        self._path = checkpoint_path(working_copy.here(self._context.folder), config["number"])
        try:
            study = self._context.study.with_values(config["values"])
            self._costs = self._context.subject.costs(study)
            self._open(study)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this trial's and not the next one's
            self._error = error_words(error)

    def _result(self, history: list[Epoch], finished: bool, is_late: bool) -> dict[str, Any]:
        reported, self._reported = self._reported, len(history)
        return result_of(self._context.subject.objective, self._costs, history, reported, finished, is_late)

    def _is_report(self, epoch: Epoch, started: float) -> bool:
        return epoch.number in self._context.rungs or time.monotonic() - started >= REPORT_SECONDS

    # --- training in this process ------------------------------------------------------------------------------------

    def _open(self, study: Study) -> None:
        self._saved = time.monotonic()
        run = self._context.subject.begin(study)
        if (state := load_checkpoint(self._path, run.device)) is not None:
            run.load_state_dict(state)
        self._run: Trained | None = run
        self._checkpoint_seconds = study.training.checkpoint_seconds

    def _advance(self) -> dict[str, Any]:
        run = self._run
        assert run is not None
        started = time.monotonic()
        for epoch in run.epochs():
            if self._is_report(epoch, started):
                break
        is_late = time.time() >= self._context.deadline
        if run.finished or is_late or time.monotonic() - self._saved >= self._checkpoint_seconds:
            save_checkpoint(self._state(), self._path)
            self._saved = time.monotonic()
        if run.finished or is_late:  # a trial that is told as ended has its model where others find it
            working_copy.settle()
        return self._result(run.history, run.finished, is_late)

    def _state(self) -> dict[str, Any]:
        """All that it takes to go on."""
        assert self._run is not None
        return self._run.state_dict()

    def _close(self) -> None:
        self._run = None
        if self._context.node not in (None, ray.get_runtime_context().get_node_id()):
            working_copy.release(self._path.parent)  # on the driver's own node, it keeps those of the best


class PopulationTrainable(TrialTrainable):
    """A trial of a population. Tune has it take over another one's state, with other values, by restoring it."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._config = config
        super()._begin(config)

    def _open(self, study: Study) -> None:
        self._saved = time.monotonic()
        self._checkpoint_seconds = study.training.checkpoint_seconds
        state = load_checkpoint(self._path)
        if state is not None:  # of an earlier process, whose last change of values Optuna may not have been told
            self._take(state)
        else:
            self._run = self._context.subject.begin(study)
            self._lineage = [self._part(1)]

    def _take(self, state: dict[str, Any]) -> None:
        """Go on from a state, with the last values of its lineage."""
        self._lineage = state[LINEAGE]
        run = self._context.subject.begin(self._context.study.with_values(self._lineage[-1]["values"]))
        run.load_state_dict(state)
        self._run = run

    def _part(self, epoch: int) -> dict[str, Any]:
        settings = {name: self._config[name] for name in ("values", "parameters")}
        return {"epoch": epoch, "trial": self._config["number"], **settings}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {LINEAGE: self._lineage}

    def _result(self, history: list[Epoch], finished: bool, is_late: bool) -> dict[str, Any]:
        return super()._result(history, finished, is_late) | {LINEAGE: self._lineage}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._error is None:
            for path in (self._path, Path(checkpoint_dir, self._path.name)):
                save_checkpoint(self._state(), path)

    def load_checkpoint(self, checkpoint: dict | None) -> None:
        """Go on from the state in a folder: its own, or another trial's, which it then copies."""
        if self._error is not None:
            return
        try:
            state = load_checkpoint(Path(str(checkpoint), self._path.name))
            assert state is not None
            if state[LINEAGE][-1]["trial"] != self._config["number"]:
                state |= {LINEAGE: [*state[LINEAGE], self._part(len(state["history"]) + 1)]}
            self._take(state)
            save_checkpoint(self._state(), self._path)
            self._reported = len(state["history"])
        except Exception as error:  # noqa: BLE001 - as in _begin
            self._error = error_words(error)


class LabelTrainable(TrialTrainable):
    """A trial that is trained from scratch with a part of the labels, and with more of them each time it may go on."""

    def _open(self, study: Study) -> None:
        self._saved = time.monotonic()
        self._study, self._checkpoint_seconds = study, study.training.checkpoint_seconds
        self._parts = sorted(self._context.rungs)
        state = load_checkpoint(self._path)
        self._stage: int = state["stage"] if state else 0
        self._earlier: int = state["earlier"] if state else 0  # epochs of the stages before
        self._begin_stage()
        if state:
            self._run.load_state_dict(state)
        self._is_told = False

    def _begin_stage(self) -> None:
        subject = cast(MultiTaskLearning, self._context.subject)
        self._run: TrainingRun = replace(subject, share=self._parts[self._stage] / self._parts[-1]).begin(self._study)

    def _advance(self) -> dict[str, Any]:
        if self._is_told:  # and Tune let the trial go on
            self._earlier += len(self._run.history)
            self._stage, self._reported = self._stage + 1, 0
            self._begin_stage()
        found = super()._advance()
        self._is_told = self._run.finished
        return found

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"stage": self._stage, "earlier": self._earlier}

    def _result(self, history: list[Epoch], finished: bool, is_late: bool) -> dict[str, Any]:
        is_last = self._stage == len(self._parts) - 1
        found = super()._result(history, finished and is_last, is_late)
        epochs = [epoch | {"number": self._earlier + epoch["number"]} for epoch in found["epochs"]]
        del found[RESOURCE]
        if finished or is_late:  # before the end of a stage there is nothing to compare it by
            found[RESOURCE] = self._parts[self._stage]
        epoch = self._earlier + found["epoch"]
        return found | {LABELS: len(self._run.train), "epoch": epoch, "epochs": epochs}


class DistributedTrainable(TrialTrainable):
    """The same for a trial of several workers, which Ray Train runs while a thread of this process waits for them."""

    _training: threading.Thread | None = None

    def _open(self, study: Study) -> None:
        state = load_checkpoint(self._path)
        self._history = [Epoch(**epoch) for epoch in state["history"]] if state else []
        self._events: queue.SimpleQueue[Epoch | dict[str, Any] | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._epochs = self._context.subject.epochs(study)
        self._training = threading.Thread(target=self._train, args=(study,), daemon=True)
        self._training.start()

    def _train(self, study: Study) -> None:
        def on_epoch(epoch: Epoch) -> None:
            if self._stop.is_set():
                raise _StoppedError
            self._events.put(epoch)

        try:
            self._events.put(self._context.subject.train_distributed(study, self._path.parent, on_epoch))
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised by who asks for events
            self._events.put(error)

    def _advance(self) -> dict[str, Any]:
        started = time.monotonic()
        while True:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, dict):
                self._history = [Epoch(**epoch) for epoch in event["history"]]
                return self._result(self._history, finished=True, is_late=False)
            self._history.append(event)
            # The last one is reported with the outcome: a scheduler would stop a trial that is at its end.
            if self._is_report(event, started) and event.number < self._epochs:
                break
        is_late = time.time() >= self._context.deadline
        if is_late:
            self._close()
        return self._result(self._history, finished=False, is_late=is_late)

    def _close(self) -> None:
        """Have the workers stop after the epoch at hand, and wait until their resources are free."""
        if self._training is not None:
            self._stop.set()
            self._training.join()
        super()._close()


class _StoppedError(Exception):
    """Tells the workers of a trial to stop."""
