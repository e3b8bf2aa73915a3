"""What a search whose best trial is judged by another verb gives: its trials, and that verb's result of the best one.

`meta --search` and `transfer --search` return it; `search` judges its best trial itself and has a result of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import pandas as pd

from polyshot.searching.sweep import read_trials
from polyshot.shown import Shown
from polyshot.study import Study

Result = TypeVar("Result", bound=Shown)


@dataclass(frozen=True, repr=False)
class BestFound(Shown, Generic[Result]):
    """The trials of a search and the best of them.

    Attributes:
        trials: one row per trial, the best first (see `searching.sweep.trials_table`).
        best_values: the values of the best trial, by dotted key.
        best_study: the study with these values.
        best: what the verb makes of that study.
    """

    trials: pd.DataFrame
    best_values: dict[str, Any]
    best_study: Study
    best: Result

    @classmethod
    def read(
        cls, study: Study, folder: Path, outcome: dict[str, Any], read_result: Callable[[Path, str | None], Result]
    ) -> Self:
        """From a run's folder and what its result file holds; `read_result` reads what the verb left there."""
        values = outcome["best_values"]
        best = read_result(folder, outcome["mlflow_id"])
        return cls(read_trials(folder), values, study.with_values(values), best)

    def _words(self) -> Iterator[str]:
        yield "Best values: " + ", ".join(f"{key} {value}" for key, value in self.best_values.items()) + "."
        yield from self.best._words()

    def _tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield from self.best._tables()
        yield f"{len(self.trials)} trials", self.trials.dropna(axis=1, how="all")
