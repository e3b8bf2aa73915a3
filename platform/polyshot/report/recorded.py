"""A run's folder as its report reads it: the study, the state, and the tables that its verb left there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from polyshot.errors import RunError
from polyshot.run_folder import read_table
from polyshot.study import Study


@dataclass(frozen=True)
class RecordedRun:
    folder: Path
    state: dict[str, Any]  # see `RunFolder.state`

    @classmethod
    def open(cls, folder: Path) -> RecordedRun:
        """
        Raises:
            RunError: when the folder is no run's.
        """
        try:
            return cls(folder, json.loads((folder / "run.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError) as error:
            raise RunError(
                f"{folder}: is not a run's folder ({error}); name one, such as runs/study/train-1"
            ) from error

    @property
    def verb(self) -> str:
        return str(self.state["verb"])

    @property
    def started(self) -> str:
        return datetime.fromtimestamp(self.state["started"], UTC).strftime("%Y-%m-%d %H:%M UTC")

    @cached_property
    def study(self) -> Study:
        return Study.load(self.folder / "study.yaml")

    def has(self, file: str) -> bool:
        return (self.folder / file).exists()

    def table(self, file: str) -> pd.DataFrame:
        """
        Raises:
            RunError: when the run has not come so far.
        """
        self._require(file)
        return read_table(self.folder / file)

    def values(self, file: str) -> Any:
        """What a JSON file holds. Raises as `table`."""
        self._require(file)
        return json.loads((self.folder / file).read_text(encoding="utf-8"))

    def _require(self, file: str) -> None:
        if not self.has(file):
            raise RunError(
                f"{self.folder}: has no {file}, so this run has not ended, or is of an earlier release; run "
                f"`polyshot {self.verb}` with its study again"
            )
