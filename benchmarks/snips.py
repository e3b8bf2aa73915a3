"""Intent and slots of SNIPS, learnt together by fine-tuning MiniLM: accuracy and entity F1 on the 700 test sentences.

    POLYSHOT_DATA=/path/to/data uv run python benchmarks/snips.py --minutes 9     # again and again, until it has ended

The study is examples/snips/study.yaml, with the split that papers use. A pass over the 13,084 sentences takes four to
ten minutes of one CPU core, so an epoch is a quarter of one here, and each call goes on from the last one's checkpoint
until its minutes are over. `--precision bfloat16` is mixed precision, twice as fast where the processor has
instructions for it (AVX-512 BF16). The epoch that is kept is the best on the 700 validation sentences; test is looked
at once, at the end. `--task intent` (or `slots`) trains one task alone under the same budget.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from timing import machine

from polyshot.data.prepare import prepare
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import TrainingRun

EXAMPLE = Path(__file__).parents[1] / "examples" / "snips" / "study.yaml"
QUARTER = 103  # batches of 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further epoch begins")
    parser.add_argument("--epochs", type=int, default=8, help="quarters of a pass")
    parser.add_argument("--task", choices=["intent", "slots"], help="one task alone")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--folder", type=Path, default=Path("polyshot-runs/benchmark-snips"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    study = Study.load(EXAMPLE).with_values(
        {
            "training.epochs": arguments.epochs,
            "training.steps_per_epoch": QUARTER,
            "training.precision": arguments.precision,
            "scale.device": "cpu",
        }
    )
    prepared = prepare(study)
    if arguments.task:
        study, prepared = study.single_task(arguments.task), prepared.for_task(arguments.task)
    run = TrainingRun(study, prepared)
    checkpoint = arguments.folder / f"{arguments.task or 'both'}-{study.digest('tasks', 'model', 'training')}.pt"
    state = load_checkpoint(checkpoint)
    if state is not None:
        run.load_state_dict(state)
    epochs = run.epochs()
    while not run.finished and time.monotonic() - started < 60 * arguments.minutes:
        epoch = next(epochs)
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items() if "/" in name)
        print(f"epoch {epoch.number}, {epoch.seconds:.0f} s: {metrics}", flush=True)
        save_checkpoint(run.state_dict(), checkpoint)
    if not run.finished:
        print(f"{len(run.history)} of {arguments.epochs} epochs; the same command goes on")
        return
    found = run.evaluate(prepared.test)
    seconds = sum(epoch.seconds for epoch in run.history)
    print(machine())
    print(
        f"{arguments.epochs / 4:g} passes, {seconds / 60:.0f} minutes, epoch {run.best.number if run.best else 0} kept"
    )
    print("| intent accuracy, % | slot F1, % |\n|---|---|")
    print(
        "| "
        + " | ".join(f"{100 * found.get(name, float('nan')):.1f}" for name in ("intent/accuracy", "slots/f1"))
        + " |"
    )


if __name__ == "__main__":
    main()
