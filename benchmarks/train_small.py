"""`polyshot train` on a small table beside a script by hand that trains the same model for the same epochs.

    uv run python benchmarks/train_small.py

Aim: under twice the script's time without baselines. With baselines Polyshot trains each task alone too, which the
script does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from timing import POLYSHOT, Measurement, interleave, machine, measure, table
from workload import study_text, write_table

PEER = Path(__file__).parent / "peers" / "train_small_torch.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "table.csv")
        write_table(source, options.rows)

        def polyshot(*extra: str) -> Measurement:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:  # a new one: nothing is cached or resumed
                Path(folder, "table.csv").symlink_to(source)
                text = study_text("train-small", epochs=options.epochs, batch_size=options.batch_size)
                Path(folder, "study.yaml").write_text(text)
                return measure([*POLYSHOT, "train", "study.yaml", "--json", *extra], Path(folder))

        def by_hand() -> Measurement:
            budget = ["--epochs", str(options.epochs), "--batch-size", str(options.batch_size)]
            return measure([sys.executable, PEER, source, *budget], Path(scratch))

        results = interleave(
            {
                "script": by_hand,
                "polyshot train --no-baselines": lambda: polyshot("--no-baselines"),
                "polyshot train": polyshot,
            },
            options.rounds,
        )

    print(f"\n{options.rows} rows, {options.epochs} epochs, batches of {options.batch_size}; {machine()}\n")
    print(table(results, reference="script"))
    print("\nThe same quality was reached (each splits the rows in its own way):")
    print("\n".join(results["script"][-1].output.strip().splitlines()))
    for row in json.loads(results["polyshot train --no-baselines"][-1].output)["metrics"]:
        print(f"polyshot {row['split']}: {row['metric']} {row['multi_task']:.4f}")


if __name__ == "__main__":
    main()
