"""How training and searching scale on one machine: workers, trials at once, Ray Train's share, a job's first step.

    uv run python benchmarks/scaling.py train       # the plain loop; Ray Train with one worker and with two
    uv run python benchmarks/scaling.py meta        # the same for meta-training
    uv run python benchmarks/scaling.py search      # one trial at a time, and two
    uv run python benchmarks/scaling.py submit --address http://127.0.0.1:8265   # a cluster that is running

One thread for each worker and each trial. Rates are of the steady state: from the second epoch, or trial, to the last.
Aim: Ray Train with one worker costs at most 5 % over the plain loop.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import POLYSHOT, machine
from workload import study_text, write_table

from polyshot.study import Study

SEARCH = """\
search:
  spaces: []
  space: {training.optimiser.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}
  objective: score/rmse
  scheduler: none
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "meta", "search", "submit"))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--address", help="of a cluster's Jobs API, for submit")
    options = parser.parse_args()
    print(f"{options.rows} rows, batches of {options.batch_size}; {machine()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        write_table(Path(scratch, "table.csv"), options.rows)
        {"train": train, "meta": meta, "search": search, "submit": submit}[options.what](Path(scratch), options)


def make_study(folder: Path, options: argparse.Namespace, **values: object) -> Study:
    text = study_text("scaling", epochs=options.epochs, batch_size=options.batch_size, search=SEARCH)
    Path(folder, "study.yaml").write_text(text)
    chosen = {"storage": str(folder / "runs"), "scale.device": "cpu", "scale.threads": 1}
    return Study.load(folder / "study.yaml").with_values(chosen | {k.replace("__", "."): v for k, v in values.items()})


# --- workers ---------------------------------------------------------------------------------------------------------


def train(scratch: Path, options: argparse.Namespace) -> None:
    """Rows a second of one run, by how it is trained."""
    import torch

    from polyshot.data.prepare import prepare
    from polyshot.training.distributed import train_distributed
    from polyshot.training.loop import TrainingRun

    torch.set_num_threads(1)
    study = make_study(scratch, options)
    prepared = prepare(study)

    def distributed(scaled: Study, folder: Path, on_epoch: Callable[[object], None]) -> object:
        return train_distributed(scaled, prepared, folder, on_epoch=on_epoch)

    _compare(
        study,
        lambda: TrainingRun(study, prepared),
        distributed,
        ("rows", len(prepared.train.features)),
        scratch,
        options.rounds,
    )


def meta(scratch: Path, options: argparse.Namespace) -> None:
    """Tasks a second of meta-training on sinusoids, by how it is trained."""
    import torch

    from polyshot.meta.episodes import build_source
    from polyshot.verbs.meta import begin, train_distributed

    torch.set_num_threads(1)
    settings = {
        "episodes": {"kind": "sinusoids"},
        "learner": {"kind": "maml", "rate": 0.01, "steps": 5},
        "tasks_per_batch": 32,
        "validate_every": 20,
        "validation_tasks": 10,
        "iterations": 20 * options.epochs,
        "compile": "never",
    }
    values = {"model": {"encoder": {"width": 256}}, "scale": {"device": "cpu", "threads": 1}}
    study = Study.from_dict({"name": "scaling", "storage": str(scratch / "runs"), "meta": settings} | values)
    source = build_source(study)

    def distributed(scaled: Study, folder: Path, on_epoch: Callable[[object], None]) -> object:
        return train_distributed(scaled, source, folder, on_epoch)

    tasks = settings["validate_every"] * settings["tasks_per_batch"]
    _compare(study, lambda: begin(study, source), distributed, ("tasks", tasks), scratch, options.rounds)


def _compare(
    study: Study,
    plain: Callable[[], Any],
    distributed: Callable[[Study, Path, Callable[[object], None]], object],
    unit: tuple[str, int],
    scratch: Path,
    rounds: int,
) -> None:
    """Print the rates of the plain loop and of Ray Train with one worker and two.

    Args:
        unit: what is counted, and how many of it an epoch has.
    """
    from polyshot.cluster.ray import ray_session

    ways: dict[str, Callable[[_Clock, int], object]] = {
        "the plain loop": lambda clock, _: [clock.tick() for _ in plain().epochs()]
    }
    for workers in (1, 2):
        scaled = study.with_values({"scale.workers": workers})
        ways[f"Ray Train, {workers} worker{'s' * (workers > 1)}"] = lambda clock, number, scaled=scaled: distributed(
            scaled, scratch / f"run-{scaled.scale.workers}-{number}", lambda _: clock.tick()
        )
    rates: dict[str, list[float]] = {name: [] for name in ways}
    name_of_unit, amount = unit
    with ray_session(study):
        for number in range(rounds):
            for name, way in ways.items():
                clock = _Clock()
                way(clock, number)
                rates[name].append(amount * clock.rate())
                print(f"round {number + 1}, {name}: {rates[name][-1]:.0f} {name_of_unit} per second", file=sys.stderr)
    base = statistics.median(rates["the plain loop"])
    print(f"| | {name_of_unit} per second (range) | of the plain loop |\n|---|---|---|")
    for name, each in rates.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.0f} ({min(each):.0f}–{max(each):.0f}) | {100 * median / base:.0f} % |")


class _Clock:
    """Notes when things happen; an epoch that is told late is told with those after it, so only the ends count."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def tick(self) -> None:
        self._times.append(time.perf_counter())

    def rate(self) -> float:
        """Ticks a second after the first."""
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])


# --- trials ----------------------------------------------------------------------------------------------------------


def search(scratch: Path, options: argparse.Namespace) -> None:
    """Trials a minute, by how many run at once."""
    from polyshot.cluster.ray import ray_session
    from polyshot.searching.searcher import open_study
    from polyshot.verbs.search import search as run_search

    print(
        "| trials at once | trials | the whole search in seconds | trials per minute once running |\n|---|---|---|---|"
    )
    with ray_session(make_study(scratch, options)):
        for concurrency in (1, 2):
            folder = scratch / str(concurrency)
            folder.mkdir()
            (folder / "table.csv").symlink_to(scratch / "table.csv")
            study = make_study(folder, options, search__concurrency=concurrency, search__trials=options.trials)
            started = time.perf_counter()
            run_search(study)
            seconds = time.perf_counter() - started
            trials = open_study(study, study.storage_folder / "search-1" / "optuna.journal", "minimize").trials
            ended = sorted(trial.datetime_complete for trial in trials if trial.datetime_complete)
            # The first of each worker waits for it to start.
            steady = 60 * (len(ended) - concurrency) / (ended[-1] - ended[concurrency - 1]).total_seconds()
            print(f"| {concurrency} | {len(trials)} | {seconds:.1f} | {steady:.1f} |", flush=True)


# --- jobs ------------------------------------------------------------------------------------------------------------


def submit(scratch: Path, options: argparse.Namespace) -> None:
    """Seconds from the command to what a job prints."""
    marks = {
        "accepted": "scaling-train-",
        "command started": "Running entrypoint",
        "first epoch": "multi-task model: 1/",
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*marks, "ended"]}
    make_study(scratch, options)
    for number in range(options.rounds):
        command = [*POLYSHOT, "submit", "train", str(scratch / "study.yaml"), "--wait", "--no-baselines"]
        command += ["--set", f"storage={scratch}/runs-{number}", "--set", f"data.source={scratch}/table.csv"]
        command += ["--address", options.address] if options.address else []
        waiting, started = dict(marks), time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                for name, words in list(waiting.items()):
                    if words in line:
                        seconds[name].append(time.perf_counter() - started)
                        del waiting[name]
        assert process.returncode == 0
        seconds["ended"].append(time.perf_counter() - started)
    print("| after `polyshot submit train --wait` | seconds (range) |\n|---|---|")
    for name, each in seconds.items():
        print(f"| {name} | {statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f}) |")


if __name__ == "__main__":
    main()
