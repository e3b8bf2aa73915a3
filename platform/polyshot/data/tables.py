"""The rows that a study learns from: its one table, or the tables of its tasks below each other.

Called by `prepare`. Where tasks have tables of their own, a row has labels of that table's tasks only, and the others'
are missing like any missing label: everything that follows knows one table with masks. It encodes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.data.columns import require_columns
from polyshot.data.source import read_table
from polyshot.errors import DataError
from polyshot.study import Study
from polyshot.study.tasks import own_targets


@dataclass(frozen=True)
class Tables:
    """Rows of one or more tables.

    Attributes:
        rows: all of them, numbered from 0; each task's labels are in the columns `Study.targets`.
        origin: [N], which of `Study.tables` a row comes from.
        notes: what was left out, a sentence each.
    """

    rows: pd.DataFrame
    origin: NDArray[np.int64]
    notes: list[str]


def read_tables(study: Study) -> Tables:
    """Read the study's tables.

    A column that a table lacks is missing in its rows. In a task's own table the target takes the task's name, or each
    of its labels a name that begins with it; a column there that bears the name of another task's target is left out,
    so that no label becomes an input.

    Raises:
        DataError: when a table cannot be read, lacks a target, or has a column that takes a target's name.
        RunError: when a source function cannot be imported.
    """
    parts, notes = [], []
    for source, tasks in study.tables:
        shared = source is study.data
        table = read_table(source, study.folder, "data" if shared else f"tasks.{tasks[0]}")
        if not shared:
            table = _called_like_tasks(table, study, tasks)
        others = [
            column
            for name, columns in study.targets.items()
            for column in columns
            if name not in tasks and column in table.columns
        ]
        notes += [
            f"In the table of task '{tasks[0]}', the column '{column}' is left out: it is called like another task's "
            "labels."
            for column in others
        ]
        parts.append(table.drop(columns=others))
    if len(parts) == 1:
        return Tables(parts[0], np.zeros(len(parts[0]), dtype=np.int64), notes)
    origin = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Tables(pd.concat(parts, ignore_index=True), origin, notes)


def _called_like_tasks(table: pd.DataFrame, study: Study, tasks: list[str]) -> pd.DataFrame:
    """The table with its targets named by their tasks."""
    targets = {name: own_targets(name, study.tasks[name]) for name in tasks}
    dropped = {target for columns in targets.values() for target in columns}
    labels = {}
    for name, columns in targets.items():
        require_columns(table, columns, f"tasks.{name}")
        for target, called in zip(columns, study.targets[name], strict=True):
            if called in table.columns and called not in dropped:
                raise DataError(
                    f"tasks.{name}: its table has a column '{called}' beside the target '{target}', which takes that "
                    "name; rename the task or that column"
                )
            labels[called] = table[target]
    return table.drop(columns=list(dropped)).assign(**labels)
