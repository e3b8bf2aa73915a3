"""What many tests share: the command line run in this process, and small tables with something to learn."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that what is begun last is short and both processes end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-pictures", action="store_true", help="Write what the browser shows to docs/images.")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small models on one thread: on a busy machine, two threads that wait for each other take many times as long."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# A shell ignores Ctrl-C in what it runs in the background, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("MLFLOW_TRACKING_URI", None)  # tests record beside themselves, whatever the shell that runs them names
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # for tests that start Ray themselves, under `uv run pytest`
# Hundreds of processes that the tests start would each compile Polyshot's modules for most of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `import polyshot`, for tests that import torch before it


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Undoes what a test did to the environment: MLflow's own functions, and the tracking writer run here, set it."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


@pytest.fixture
def polyshot(monkeypatch, capfd, tmp_path) -> Callable[..., Outcome]:
    """Runs `polyshot ARGUMENTS…` in this process, from `tmp_path`."""
    from polyshot.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["polyshot", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(left.value.code or 0), out, err)

    return run


def learnable_table(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    """Two related targets of six columns: `price` (numeric, some missing) and `sold` (yes or no)."""
    random = np.random.default_rng(seed)
    size, age = random.normal(100, 20, rows), random.integers(0, 80, rows)
    town = random.choice(["Aster", "Birch", "Cedar"], rows)
    value = 0.04 * (size - 100) - 0.02 * (age - 40) + 0.8 * (town == "Cedar") + random.normal(0, 0.3, rows)
    table = pd.DataFrame(
        {
            "size": size.round(1),
            "age": age,
            "town": town,
            "garden": random.random(rows) < 0.5,
            "built": pd.Timestamp("2020-01-01") - pd.to_timedelta(age * 365, unit="D"),
            "street": random.integers(0, 30, rows),
            "price": (200_000 + 50_000 * value).round(),
            "sold": np.where(value + random.normal(0, 0.3, rows) > 0, "yes", "no"),
        }
    )
    table.loc[random.random(rows) < 0.1, "price"] = np.nan
    return table


STUDY = """\
name: houses
data:
  source: houses.csv
tasks:
  price: {kind: regression}
  sold: {kind: binary}
model:
  encoder: {width: 16, depth: 1}
training:
  epochs: 4
  batch_size: 64
"""


@pytest.fixture
def houses(tmp_path) -> Path:
    """A study file beside its table, small enough to train in a second."""
    learnable_table().to_csv(tmp_path / "houses.csv", index=False)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path
