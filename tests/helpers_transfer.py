"""Tables that have something to transfer, and studies of them, for the tests of transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polyshot.data.prepare import prepare
from polyshot.run_folder import RunFolder
from polyshot.saved_model import save_model
from polyshot.study import Study
from polyshot.training.baselines import SECTIONS
from polyshot.training.loop import TrainingRun

INPUTS = 24


def table(rows: int, seed: int, *, harmful: bool = False, shift: float = 0.0) -> pd.DataFrame:
    """Rows with the label `sold` and the quantity `price`, both of one function that takes many rows to learn.

    `harmful`: with labels permuted, so that nothing of them can be learnt. `shift` moves the columns.
    """
    weights = np.random.default_rng(0)
    first, second = 2 * weights.normal(size=(INPUTS, 6)) / INPUTS**0.5, weights.normal(size=6)
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, INPUTS))
    hidden = np.tanh(features @ first) @ second
    value = hidden + random.normal(0, 0.3, rows)
    if harmful:
        value = random.permutation(value)
    columns = pd.DataFrame(features + shift, columns=[f"x{place}" for place in range(INPUTS)])
    return columns.assign(
        sold=np.where(value > 0, "yes", "no"),
        price=100 + 20 * value,
        region=np.select([value < -1, value < 1], ["a", "b"], "c"),
    )


def source_study(folder: Path, rows: int = 3000, **values: Any) -> Path:
    """The file of a study to transfer from, beside its table."""
    harmful = values.pop("harmful", False)
    table(rows, 1, harmful=harmful).to_csv(folder / "source.csv", index=False)
    study = Study.from_dict(_study(folder, "there", "source.csv", {"sold": {"kind": "binary"}})).with_values(values)
    path = folder / "source.yaml"
    path.write_text(study.to_yaml())
    return path


def trained_source(folder: Path, **values: Any) -> Path:
    """The same, with a run of it as `polyshot train` leaves it; MLflow is told nothing."""
    path = source_study(folder, **values)
    study = Study.load(path)
    prepared = prepare(study)
    run = TrainingRun(study, prepared)
    for _ in run.epochs():
        pass
    made = RunFolder.open(study, "train", study.digest(*SECTIONS))
    save_model(made.path / "model", study, prepared, run)
    made.close("finished")
    return path


def target_study(folder: Path, rows: int = 700, tasks: dict[str, Any] | None = None, **values: Any) -> Study:
    """A study of a table of the same kind, which is written beside it."""
    table(rows, 2).to_csv(folder / "target.csv", index=False)
    study = _study(folder, "here", "target.csv", tasks or {"sold": {"kind": "binary"}})
    study["data"]["split"] = {"validation": 0.2, "test": 0.4}
    study["transfer"] = {"source": "source.yaml", "budgets": [20, "all"], "seeds": 2}
    path = folder / "target.yaml"
    path.write_text(Study.from_dict(study).with_values(values).to_yaml())
    return Study.load(path)


def _study(folder: Path, name: str, source: str, tasks: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "storage": str(folder / "runs"),
        "data": {"source": source, "features": [f"x{place}" for place in range(INPUTS)]},
        "tasks": tasks,
        "model": {"encoder": {"width": 32}},
        "training": {
            "epochs": 15,
            "batch_size": 64,
            "optimiser": {"learning_rate": 5e-3},
            "early_stopping": {"patience": 5},
        },
        "scale": {"device": "cpu", "threads": 1},
        "tracking": {"models": False},
    }
