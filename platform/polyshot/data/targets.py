"""Target columns as numbers and back: class indices, or standardised values in and own units out.

`prepare` fits one `Target` per task; it is saved with the model as JSON. Missing labels stay missing (NaN): no row is
dropped here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from polyshot.data.columns import (
    as_booleans,
    as_numbers,
    counted,
    first_row,
    require_columns,
    row_name,
    text_of,
)
from polyshot.data.words import OUTSIDE, is_bio, words_of
from polyshot.errors import DataError, did_you_mean
from polyshot.study.tasks import BinaryTask, MultilabelTask, RegressionTask, Task, TokensTask

MAX_CLASSES = 1000
ClassValue = str | int | bool


@dataclass(frozen=True)
class Target:
    """How one task's labels are encoded.

    Attributes:
        column: the target's; of a multilabel task, that of its first label.
        classes: in the order of their indices; for a binary task the positive class is the second, for each label of a
            multilabel task they are 0 and 1. None for regression.
        mean, scale: of the labels of the training rows; 0 and 1 for classification.
        labels: the columns of a multilabel task's labels, [K]; None for other kinds.
        words: the column of the words that a task of kind tokens labels; None for other kinds.
        places: W, how many words of a row have a label at most; 1 for other kinds.
    """

    task: str
    kind: Literal["regression", "binary", "multiclass", "multilabel", "tokens"]
    column: str
    classes: list[ClassValue] | None = None
    mean: float = 0.0
    scale: float = 1.0
    labels: list[str] | None = None
    words: str | None = None
    places: int = 1

    @property
    def columns(self) -> list[str]:
        """The columns of a table that hold its labels: one, or the K of a multilabel task."""
        return self.labels or [self.column]

    @property
    def width(self) -> int:
        """L, the numbers that a row's labels take: one, or one per label or word."""
        return self.places if self.kind == "tokens" else len(self.columns)

    @property
    def head(self) -> int:
        """Rows of weights that a model's head has for this task: one, or one per class or label."""
        return len(self.classes) if self.kind in ("multiclass", "tokens") and self.classes else len(self.columns)

    @property
    def outputs(self) -> int:
        """Numbers that a model's head gives for this task: those of `head`, for each of its places."""
        return self.head * self.places

    def read(self, table: pd.DataFrame) -> NDArray[np.float32]:
        """The task's labels [N, 1], [N, K] of a multilabel task or [N, W] of one of kind tokens, encoded.

        Raises:
            DataError: see `encode`; for as many labels as there are words in no row.
        """
        if self.kind == "tokens":
            return self._read_words(table)
        return np.stack([self.encode(table[column]) for column in self.columns], axis=1)

    def encode(self, labels: pd.Series) -> NDArray[np.float32]:
        """Labels [N] of one column as class indices or standardised values, NaN where missing.

        Raises:
            DataError: for a label that is no number (regression) or none of the classes.
        """
        if self.kind == "multilabel":
            return as_booleans(labels, _place(self.task, str(labels.name)), AS_LABEL).astype(np.float32)
        if self.classes is None:
            numbers = as_numbers(labels, _place(self.task, self.column), MEND)
            return ((numbers - self.mean) / self.scale).astype(np.float32)
        index = {text_of(value): position for position, value in enumerate(self.classes)}
        codes, values = pd.factorize(labels)
        positions = np.array([*(index.get(text_of(value), np.inf) for value in values), np.nan], dtype=np.float32)
        encoded: NDArray[np.float32] = positions[codes]
        if np.isinf(encoded).any():
            row, value = first_row(labels, np.isinf(encoded))
            hint = did_you_mean(value, self.classes)
            raise DataError(
                f"{_place(self.task, self.column)} holds {value!r} in {row}, which is none of the classes trained "
                f"with; correct it or leave it empty.{hint}"
            )
        return encoded

    def _read_words(self, table: pd.DataFrame) -> NDArray[np.float32]:
        """[N, W], NaN behind the last word."""
        index = {label: position for position, label in enumerate(self.classes or [])}
        encoded = np.full((len(table), self.places), np.nan, dtype=np.float32)
        for row, labels in zip(encoded, label_sequences(self.task, self.column, table, self.words or ""), strict=True):
            row[: len(labels)] = [index[label] for label in labels[: self.places]]
        return encoded

    def decode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Class indices or standardised values [N] as classes or in the target's own units."""
        if self.classes is None:
            return np.asarray(values, dtype=np.float64) * self.scale + self.mean
        classes = np.empty(len(self.classes), dtype=object)
        classes[:] = self.classes
        return classes[np.asarray(values, dtype=np.int64)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)


MEND = "correct it or leave it empty, or make the task's kind binary or multiclass"
AS_LABEL = "correct it or leave it empty, or make the column a task of its own"


def fit_target(
    name: str, task: Task, table: pd.DataFrame, columns: Sequence[str], training_rows: NDArray[np.int64]
) -> Target:
    """The encoding of the task's labels: classes of the whole table, mean and scale of the training rows.

    Classes come from all rows so that every label has an index; what is learnt about them comes from training alone.

    Raises:
        DataError: when the labels are not what the task's kind asks for.
    """
    require_columns(table, columns, f"tasks.{name}")
    if isinstance(task, MultilabelTask):
        return Target(name, "multilabel", columns[0], [0, 1], labels=list(columns))
    (column,) = columns
    if isinstance(task, TokensTask):
        return _fit_words(name, task, table, column)
    labels = table[column]
    if labels.isna().all():
        raise DataError(f"{_place(name, column)} is empty in every row; give it labels or remove the task")
    if isinstance(task, RegressionTask):
        return _fit_regression(name, column, labels, training_rows)
    classes = class_values(labels, _place(name, column))
    if isinstance(task, BinaryTask):
        return Target(name, "binary", column, _negative_and_positive(name, column, task, classes))
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{_place(name, column)} has {len(classes)} classes, more than {MAX_CLASSES}; "
            "group rare ones, or make the task's kind regression"
        )
    return Target(name, "multiclass", column, classes)


def _place(task: str, column: str) -> str:
    return f"tasks.{task}: the target column '{column}'"


def _fit_words(name: str, task: TokensTask, table: pd.DataFrame, column: str) -> Target:
    require_columns(table, [task.words], f"tasks.{name}.words")
    sequences = list(label_sequences(name, column, table, task.words))
    classes = sorted({label for labels in sequences for label in labels}, key=lambda label: (label != OUTSIDE, label))
    if len(classes) < 2:
        raise DataError(
            f"{_place(name, column)} has {'one label only' if classes else 'no labels'}, so there is nothing to learn; "
            "give words of another label or remove the task"
        )
    wrong = [label for label in classes if not is_bio(label)]
    if wrong and task.metric != "accuracy":
        raise DataError(
            f"{_place(name, column)} holds {wrong[0]!r}, and {task.metric} is of entities in BIO form (B-city, I-city, "
            "O); write labels so, or set the task's metric to accuracy"
        )
    return Target(name, "tokens", column, [*classes], words=task.words, places=max(map(len, sequences)))


def label_sequences(task: str, column: str, table: pd.DataFrame, words: str) -> Iterator[list[str]]:
    """The labels of each row's words; none of a row without labels.

    Raises:
        DataError: where a row has labels, and not one for each word.
    """
    for row, labels_of_row, words_of_row in zip(table.index, table[column], table[words], strict=True):
        labels, found = words_of(labels_of_row), words_of(words_of_row)
        if labels and len(labels) != len(found):
            raise DataError(
                f"{_place(task, column)} has {counted(len(labels), 'label')} in {row_name(row)} for "
                f"{counted(len(found), 'word')} of '{words}'; give each word a label (O where it has none)"
            )
        yield labels


def _fit_regression(name: str, column: str, labels: pd.Series, training_rows: NDArray[np.int64]) -> Target:
    numbers = as_numbers(labels, _place(name, column), MEND)
    known = numbers[training_rows]
    known = known[~np.isnan(known)]
    if not len(known):
        raise DataError(f"{_place(name, column)} has no labels in the training split; raise its share in data.split")
    mean, scale = float(known.mean()), float(known.std())
    if known.min() == known.max():
        raise DataError(
            f"{_place(name, column)} is {known[0]:g} in all {len(known)} labelled training rows, so there is nothing "
            "to learn; remove the task or give more rows"
        )
    if not np.isfinite([mean, scale]).all() or scale == 0:
        raise DataError(f"{_place(name, column)} has values too large or too close to standardise; rescale the column")
    return Target(name, "regression", column, None, mean, scale)


# --- classes ---------------------------------------------------------------------------------------------------------


def class_values(labels: pd.Series, place: str) -> list[ClassValue]:
    """The distinct labels, sorted: booleans or whole numbers where all are, otherwise texts.

    Raises:
        DataError: for fractions, compound values, or one class only; `place` is for its words.
    """
    if types.is_float_dtype(labels.dtype):
        numbers = as_numbers(labels, place)
        fractions = np.mod(numbers, 1) > 0  # false for NaN
        if fractions.any():
            row, value = first_row(labels, fractions)
            raise DataError(
                f"{place} holds {value:g} in {row}, and classes are texts, booleans or whole numbers; "
                "make the task's kind regression or name the classes"
            )
    try:
        values = [_class_value(value) for value in labels.dropna().unique()]
    except TypeError:
        raise DataError(f"{place} holds lists; give it a column of single values") from None
    if len({type(value) for value in values}) > 1:
        values = [text_of(value) for value in values]
    classes = sorted(set(values))
    if len(classes) == 1:
        raise DataError(
            f"{place} has one class only, {classes[0]!r}, so there is nothing to learn; give rows of another class or "
            "remove the task"
        )
    return classes


def _class_value(value: object) -> ClassValue:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float) and plain.is_integer():
        return int(plain)
    return plain if isinstance(plain, bool | int) else str(plain)


def _negative_and_positive(name: str, column: str, task: BinaryTask, classes: Sequence[ClassValue]) -> list[ClassValue]:
    if len(classes) > 2:
        shown = ", ".join(repr(value) for value in classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise DataError(
            f"{_place(name, column)} has {len(classes)} classes ({shown}) where a binary task has two; "
            "make its kind multiclass"
        )
    if task.positive is None:
        return list(classes)
    positives = [value for value in classes if text_of(value) == text_of(task.positive)]
    if not positives:
        raise DataError(
            f"tasks.{name}.positive: {task.positive!r} is none of the classes of '{column}' ({classes[0]!r}, "
            f"{classes[1]!r}); name one of them.{did_you_mean(task.positive, classes)}"
        )
    return [value for value in classes if value != positives[0]] + positives
