"""The table and the study that the benchmarks train on: one numeric and one binary task that share their inputs.

Imports nothing heavy: a child process is charged with its parent's memory until it starts its own program.
"""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path

FEATURES = 12


def write_table(path: Path, rows: int, seed: int = 0) -> None:
    """A CSV of standard normal features, and two targets that depend on the same two hidden directions."""
    source = random.Random(seed)
    directions = [[source.gauss() for _ in range(FEATURES)] for _ in range(2)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{number}" for number in range(FEATURES)), "score", "passed"])
        for _ in range(rows):
            features = [source.gauss() for _ in range(FEATURES)]
            first, second = (
                math.tanh(sum(x * d for x, d in zip(features, direction, strict=True)) / 2) for direction in directions
            )
            score = 50 + 10 * (first + 0.5 * second) + source.gauss(0, 3)
            passed = int(first - second + source.gauss(0, 0.5) > 0)
            writer.writerow([*(f"{feature:.6g}" for feature in features), f"{score:.6g}", passed])


def study_text(name: str, *, epochs: int, batch_size: int, search: str = "") -> str:
    """The study file: the model and the budget of peers/train_small_torch.py, without early stopping."""
    return f"""\
name: {name}
data: {{source: table.csv}}
tasks:
  score: {{kind: regression}}
  passed: {{kind: binary}}
model:
  encoder: {{kind: mlp, width: 128, depth: 2}}
training:
  epochs: {epochs}
  batch_size: {batch_size}
  early_stopping: null
  schedule: {{kind: constant}}
  optimiser: {{kind: adamw, learning_rate: 1.0e-3}}
{search}"""
