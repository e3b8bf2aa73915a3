"""Trials per minute when a trial takes under a second: `polyshot search` in two ways, Optuna and Ray Tune by hand.

    uv run python benchmarks/search_throughput.py

Each contender runs twice, with few and with many trials. The many over their time is the rate that a user sees; the
difference of the two is the rate once everything has started. Aim: at least ten times Ray Tune with a function per
trial. Trials of `polyshot search` are packed in one process here, and under Ray Tune with `search.pack=never`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from timing import POLYSHOT, Measurement, interleave, machine, measure
from workload import study_text, write_table

PEERS = Path(__file__).parent / "peers"
EPOCHS, BATCH_SIZE = 10, 128
SEARCH = """\
search:
  spaces: []
  space:
    training.optimiser.learning_rate: {low: 1.0e-4, high: 1.0e-1, log: true}
    training.optimiser.weight_decay: {low: 1.0e-6, high: 1.0e-2, log: true}
  objective: score/rmse
  scheduler: none
  sampler: tpe
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--trials", type=int, nargs=2, default=(20, 120), metavar=("FEW", "MANY"))
    parser.add_argument(
        "--tune-trials", type=int, nargs=2, default=(4, 20), help="the same for Ray Tune, which is slow"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "table.csv")
        write_table(source, options.rows)

        def polyshot(pack: str, trials: int) -> Measurement:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:  # a new one: nothing is cached or resumed
                Path(folder, "table.csv").symlink_to(source)
                text = study_text("throughput", epochs=EPOCHS, batch_size=BATCH_SIZE, search=SEARCH)
                Path(folder, "study.yaml").write_text(text)
                budget = ["--trials", str(trials), "--set", f"search.pack={pack}"]
                return measure([*POLYSHOT, "search", "study.yaml", *budget], Path(folder))

        def by_hand(script: str, trials: int) -> Measurement:
            budget = ["--trials", str(trials), "--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE)]
            alone = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}  # else Ray packs up this repository for every worker
            return measure([sys.executable, PEERS / script, source, *budget], Path(scratch), alone)

        contenders: dict[str, tuple[Callable[[int], Measurement], list[int]]] = {
            "Optuna, one process": (partial(by_hand, "search_optuna.py"), options.trials),
            "Ray Tune, a function per trial": (partial(by_hand, "search_ray_tune.py"), options.tune_trials),
            "polyshot search, under Ray Tune": (partial(polyshot, "never"), options.trials),
            "polyshot search, packed": (partial(polyshot, "auto"), options.trials),
        }
        results = interleave(
            {
                f"{name}, {trials} trials": partial(run, trials)
                for name, (run, sizes) in contenders.items()
                for trials in sizes
            },
            options.rounds,
            warm_up=False,
        )

    print(f"\n{options.rows} rows, {EPOCHS} epochs, batches of {BATCH_SIZE}; {machine()}\n")
    print("| | trials | seconds | trials per minute | once running | peak MiB |\n|---|---|---|---|---|---|")
    for name, (_, (few, many)) in contenders.items():
        short, long = results[f"{name}, {few} trials"], results[f"{name}, {many} trials"]
        few_seconds, seconds = (statistics.median(run.seconds for run in runs) for runs in (short, long))
        memory = statistics.median(run.peak_mib for run in long)
        running = 60 * (many - few) / (seconds - few_seconds)
        print(f"| {name} | {many} | {seconds:.1f} | {60 * many / seconds:.1f} | {running:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
