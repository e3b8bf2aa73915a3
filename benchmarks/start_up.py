"""How long the command line takes to answer: `--help`, `version` and `check`, beside a Python that does nothing.

    uv run python benchmarks/start_up.py

Aim: `--help` in under half a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from timing import POLYSHOT, interleave, machine, measure, table
from workload import study_text, write_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_table(folder / "table.csv", 2_000)
        (folder / "study.yaml").write_text(study_text("start-up", epochs=50, batch_size=64))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "polyshot --help": [*POLYSHOT, "--help"],
            "polyshot version": [*POLYSHOT, "version"],
            "polyshot check": [*POLYSHOT, "check", "study.yaml"],
        }
        results = interleave(
            {name: partial(measure, command, folder) for name, command in commands.items()}, options.rounds
        )
    print(f"\n{machine()}\n")
    print(table(results, reference="polyshot --help"))


if __name__ == "__main__":
    main()
