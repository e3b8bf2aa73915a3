"""Training steps per second for every balancer, beside a plain loop over heads, TorchJD and LibMTL.

    uv run python benchmarks/mtl_step.py
    POLYSHOT_LIBMTL=/path/to/LibMTL uv run --with cvxpy --with ecos --with clarabel --with quadprog --with qpsolvers \
        python benchmarks/mtl_step.py

An MLP 64→128→128 with eight regression heads, batches of 256 rows, Adam, one thread. Contenders take turns, a few steps
each, so that all see the same machine; what counts is the processor time of the thread, as a median over turns. LibMTL
is taken from the environment, or from the checkout that POLYSHOT_LIBMTL names. What is not installed is left out, with
a word.

Aims: fixed weights at twice the plain loop, every Gramian method at twice the better library, Nash-MTL at ten times.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from peers import mtl_step_libmtl, mtl_step_torchjd
from timing import machine
from torch import nn

from polyshot.data.prepare import Examples, TrainingData
from polyshot.data.targets import Target
from polyshot.study import Study
from polyshot.training.loop import TrainingRun

TASKS, INPUTS, WIDTH, BATCH = 8, 64, 128, 256
BATCHES = 4  # of one turn, which is an epoch
GRAMIAN = [
    *("mgda", "pcgrad", "gradvac", "cagrad", "imtl_g", "nash_mtl"),
    *("aligned_mtl", "upgrad", "fairgrad", "dualproj", "config"),
]
OTHERS = ["uncertainty", "dwa", "gls", "famo", "gradnorm", "graddrop"]
Turn = Callable[[], object]


def ours(kind: str, features: torch.Tensor, labels: torch.Tensor, at: str | None = None) -> Turn:
    """An epoch of the training loop itself."""
    study = Study.from_dict(
        {
            "name": "step",
            "data": {"source": "none.csv"},
            "tasks": {f"t{task}": {"kind": "regression"} for task in range(TASKS)},
            "model": {"encoder": {"width": WIDTH, "depth": 2}},
            "balance": {"kind": kind} | ({"at": at} if at else {}),
            "training": {"batch_size": BATCH, "epochs": 10_000},
            "scale": {"device": "cpu"},
        }
    )
    targets = [Target(name, "regression", name, mean=0.0, scale=1.0) for name in study.tasks]
    rows = Examples(features, labels, torch.ones(labels.shape, dtype=torch.bool))
    run = TrainingRun(study, TrainingData(rows, rows, targets))
    return lambda: run._train_epoch(1)


def plain_loop(features: torch.Tensor, labels: torch.Tensor) -> Turn:
    """What is usually written by hand: a module per head, a loss per head, their mean."""
    encoder = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(TASKS))
    optimiser = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=1e-3)

    def turn() -> None:
        for rows in torch.randperm(len(features)).split(BATCH):
            shared = encoder(features[rows])
            losses = [
                nn.functional.mse_loss(head(shared).squeeze(1), labels[rows, task]) for task, head in enumerate(heads)
            ]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()
            optimiser.step()

    return turn


def measure(turns: dict[str, Turn], rounds: int) -> dict[str, float]:
    """Steps per second of processor time, as medians over rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for round_number in range(-2, rounds):
        for name, turn in turns.items():
            started = time.thread_time()
            turn()
            if round_number >= 0:
                seconds[name].append(time.thread_time() - started)
    return {name: BATCHES / statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="*", help="Balancers, by their kind.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features, labels = torch.randn(BATCH * BATCHES, INPUTS), torch.randn(BATCH * BATCHES, TASKS)

    kinds = [kind for kind in ("fixed", *GRAMIAN, *OTHERS) if not options.only or kind in options.only]
    turns: dict[str, Turn] = {"plain loop": plain_loop(features, labels)}
    shape = (INPUTS, WIDTH, TASKS, BATCH)
    for kind in kinds:
        turns[f"{kind} ours"] = ours(kind, features, labels)
        if kind in GRAMIAN:
            turns[f"{kind} ours at features"] = ours(kind, features, labels, "features")
        for library, peer in (("TorchJD", mtl_step_torchjd), ("LibMTL", mtl_step_libmtl)):
            with contextlib.redirect_stdout(io.StringIO()):
                made = peer.turn(kind, features, labels, shape, os.environ.get("POLYSHOT_LIBMTL"))
            if isinstance(made, str):
                print(f"left out: {library} {kind}: {made}", file=sys.stderr)
            else:
                turns[f"{kind} {library}"] = made
    with np.errstate(all="ignore"):
        rates = measure(turns, options.rounds)

    print(f"\nSteps per second of one thread's processor time, medians of {options.rounds} turns; {machine()}\n")
    print("| balancer | Polyshot | at features | TorchJD | LibMTL | ours / better library |")
    print("|---|---|---|---|---|---|")
    print(f"| (plain loop over heads) | {rates['plain loop']:.0f} | | | | |")
    for kind in kinds:
        cells = [rates.get(f"{kind} {who}") for who in ("ours", "ours at features", "TorchJD", "LibMTL")]
        peers = [rate for rate in cells[2:] if rate] or ([rates["plain loop"]] if kind == "fixed" else [])
        ratio = f"{rates[f'{kind} ours'] / max(peers):.2f}" if peers else ""
        note = " (plain loop)" if kind == "fixed" else ""
        print(f"| {kind} | " + " | ".join(f"{cell:.0f}" if cell else "" for cell in cells) + f" | {ratio}{note} |")


if __name__ == "__main__":
    main()
