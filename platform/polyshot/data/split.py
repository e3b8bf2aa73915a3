"""Divides a table's rows into training, validation and test, by fraction or by group, always the same for one seed.

Called by `prepare`. It reads the group column and the labels it stratifies by, and never changes or drops a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.data.columns import as_texts, counted, first_row, require_columns, text_of
from polyshot.errors import DataError
from polyshot.study import Study

Rows = NDArray[np.int64]
SPLITS = ("train", "validation", "test")
WORDS = {"train": "training", "validation": "validation", "test": "test"}


def split_rows(table: pd.DataFrame, study: Study, origin: Rows | None = None) -> dict[str, Rows]:
    """Row positions of `train`, `validation` and `test`, each in ascending order; together every row once.

    With `data.group`, whole groups are drawn and the fractions are of groups. Otherwise rows are drawn, in equal
    proportions from each class of the column that the study stratifies by, or each combination of classes of several
    (missing labels count as a class; classes of fewer than three rows as one class together). Both are drawn in equal
    proportions from each table. With `data.split.column` nothing is drawn.

    Args:
        origin: [N], the table that a row comes from, where there are several.

    Raises:
        DataError: when there are too few rows or groups, a row has no group, or a task has no label in some split.
    """
    split = study.data.split
    if split.column is not None:
        rows = _given(table, split.column)
        _require_whole_groups(table, study, rows)
        _require_labels(table, study, rows)
        return rows
    generator = np.random.default_rng(split.seed)
    origin = np.zeros(len(table), dtype=np.int64) if origin is None else origin
    if study.data.group is not None:
        units, unit_of_row = groups_of_rows(table, study.data.group)
        tables = np.zeros((units, origin.max() + 1), dtype=bool)  # which of them have rows of the group
        tables[unit_of_row, origin] = True
        _, strata = np.unique(tables, axis=0, return_inverse=True)
        few = f"data.group: the column '{study.data.group}' has {counted(units, 'group')}"
    else:
        units, unit_of_row = len(table), np.arange(len(table))
        strata = _strata(table, study, origin)
        few = f"data: the table has {counted(units, 'row')}"
    test, validation = (max(1, round(fraction * units)) for fraction in (split.test, split.validation))
    if units - test - validation < 1:
        raise DataError(f"{few}, too few for training, validation and test; give more or change data.split")
    split_of_unit = _draw(strata, validation, test, generator)
    rows = {name: np.flatnonzero(split_of_unit[unit_of_row] == position) for position, name in enumerate(SPLITS)}
    _require_labels(table, study, rows)
    return rows


def _given(table: pd.DataFrame, column: str) -> dict[str, Rows]:
    """The splits that a column says."""
    require_columns(table, [column], "data.split.column")
    texts = as_texts(table[column], f"data.split.column: the column '{column}'")
    wrong = ~np.isin(texts.astype(str), SPLITS)
    if wrong.any():
        row, value = first_row(table[column], wrong)
        raise DataError(
            f"data.split.column: the column '{column}' holds {value!r} in {row}; write train, validation or test"
        )
    rows = {name: np.flatnonzero(texts == name) for name in SPLITS}
    if empty := [name for name, of_split in rows.items() if not len(of_split)]:
        raise DataError(f"data.split.column: no row of the column '{column}' says '{empty[0]}'; give some")
    return rows


def _require_whole_groups(table: pd.DataFrame, study: Study, rows: dict[str, Rows]) -> None:
    group = study.data.group
    if group is None:
        return
    _, group_of_row = groups_of_rows(table, group)
    seen: dict[int, str] = {}
    for name, of_split in rows.items():
        for row, own in zip(of_split, group_of_row[of_split], strict=True):
            if seen.setdefault(int(own), name) != name:
                raise DataError(
                    f"data.split.column: rows of the group {text_of(table[group].iloc[row])!r} are in {seen[int(own)]} "
                    f"and in {name}; put each group into one split"
                )


def folds_of_rows(table: pd.DataFrame, study: Study, folds: int) -> Rows:
    """The fold [N] of each row, from 0: whole groups with `data.group`, else rows, as evenly as the classes allow.

    Raises:
        DataError: when there are fewer rows or groups than folds.
    """
    origin = np.zeros(len(table), dtype=np.int64)
    if study.data.group is not None:
        units, unit_of_row = groups_of_rows(table, study.data.group)
        strata = np.zeros(units, dtype=np.int64)
    else:
        units, unit_of_row = len(table), np.arange(len(table))
        strata = _strata(table, study, origin)
    if units < folds:
        raise DataError(f"transfer.folds: {folds} were asked for and there are {units} rows or groups; lower it")
    generator = np.random.default_rng(study.data.split.seed)
    order = generator.permutation(units)
    order = order[np.argsort(strata[order], kind="stable")]  # classes one after another, dealt out in turn
    fold_of_unit = np.empty(units, dtype=np.int64)
    fold_of_unit[order] = np.arange(units) % folds
    return fold_of_unit[unit_of_row]


def groups_of_rows(table: pd.DataFrame, column: str) -> tuple[int, Rows]:
    """The number of groups, and the group of each row.

    Raises:
        DataError: when a row has no group.
    """
    require_columns(table, [column], "data.group")
    missing = table[column].isna().to_numpy()
    if missing.any():
        row, _ = first_row(table[column], missing)
        raise DataError(
            f"data.group: the column '{column}' is empty in {counted(int(missing.sum()), 'row')} (the first is {row}); "
            "fill it or remove these rows, since rows of one group must not be divided"
        )
    texts = as_texts(table[column], f"data.group: the column '{column}'")
    groups, group_of_row = np.unique(texts.astype(str), return_inverse=True)
    return len(groups), group_of_row


def interleaved(strata: NDArray[Any], random: np.random.Generator | None = None) -> tuple[Rows, Rows]:
    """An order of the members [N], given by their stratum, of which every beginning has all strata in proportion.

    Args:
        random: places the first of each stratum, so that every member is as likely to be in a beginning (systematic
            sampling); without it one of each stratum comes first, however small it is.

    Returns:
        The order, and each member's place within its stratum [N].
    """
    _, of_member, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    by_stratum = np.argsort(of_member, kind="stable")
    within = np.empty(len(of_member), dtype=np.int64)
    within[by_stratum] = np.arange(len(of_member)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    firsts = np.zeros(len(sizes)) if random is None else random.random(len(sizes))
    return np.argsort((within + firsts[of_member]) / sizes[of_member], kind="stable"), within


def _strata(table: pd.DataFrame, study: Study, origin: Rows) -> Rows:
    """The stratum of each row: its table, and its class there where rows are stratified."""
    strata = origin
    for columns in study.stratified_by:
        require_columns(table, columns, "data.split.stratify" if study.data.split.stratify is not True else "tasks")
        codes = [pd.factorize(as_texts(table[column], f"the column '{column}'"))[0] for column in columns]
        _, classes = np.unique(np.stack(codes), axis=1, return_inverse=True)
        sizes = np.bincount(classes)
        classes = np.where(sizes[classes] < 3, len(sizes), classes)
        _, strata = np.unique(np.stack([strata, classes]), axis=1, return_inverse=True)
    return strata


def _draw(strata: Rows, validation: int, test: int, generator: np.random.Generator) -> Rows:
    """The split of each unit (0 training, 1 validation, 2 test)."""
    _, strata, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    of_test = _shares(sizes, test, kept=2)
    of_validation = _shares(sizes - of_test, validation, kept=1)
    drawn = np.zeros(len(strata), dtype=np.int64)
    for stratum in range(len(sizes)):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        drawn[members[: of_test[stratum]]] = 2
        drawn[members[of_test[stratum] : of_test[stratum] + of_validation[stratum]]] = 1
    return drawn


def _shares(sizes: Rows, total: int, kept: int) -> Rows:
    """How many of each stratum are drawn, `total` together: in proportion, but at least one where `total` allows.

    `kept` members of each stratum are left for the other splits, so that three rows of a class reach all three.
    """
    most = np.maximum(sizes - kept, 0)
    least = np.minimum(most, 1) if np.minimum(most, 1).sum() <= total else np.zeros_like(sizes)
    exact = sizes * (total / sizes.sum())
    shares = np.clip(np.floor(exact).astype(np.int64), least, most)
    while (gap := total - int(shares.sum())) and (movable := shares < most if gap > 0 else shares > least).any():
        lack = np.where(movable, (exact - shares) * np.sign(gap), -np.inf)
        shares[int(np.argmax(lack))] += np.sign(gap)
    return shares


def _require_labels(table: pd.DataFrame, study: Study, rows: dict[str, Rows]) -> None:
    for name, columns in study.targets.items():
        require_columns(table, columns, f"tasks.{name}")
        labelled = np.asarray(table[columns].notna())
        for column, known in zip(columns, labelled.T, strict=True):
            if not known.any():
                rest = "remove the task" if len(columns) == 1 else f"take it out of tasks.{name}.target"
                raise DataError(
                    f"tasks.{name}: the target column '{column}' is empty in every row; give it labels or {rest}"
                )
        has_label = np.asarray(labelled.any(1))
        for split in SPLITS:
            if not has_label[rows[split]].any():
                raise DataError(
                    f"tasks.{name}: no row of the {WORDS[split]} split has a label ('{columns[0]}' is known in "
                    f"{counted(int(labelled[:, 0].sum()), 'row')} of {len(table)}); change data.split.seed or the "
                    "fractions, or add labels"
                )
