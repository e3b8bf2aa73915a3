"""Readings of one column: which kind it is, and its values as numbers, dates, booleans or category texts.

Called by the other modules of this package, so that a table is understood in one way while training and predicting.
It never changes a table and knows nothing of studies.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from polyshot.errors import DataError, did_you_mean
from polyshot.study.data import ColumnKind

Numbers = NDArray[np.float64]
Texts = NDArray[np.object_]

ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?\s?(Z|[+-]\d{2}(:?\d{2})?)?)?")
BOOLEAN_WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), 1.0),
    **dict.fromkeys(("false", "f", "no", "n", "0"), 0.0),
}
OTHER_KIND = "correct it or leave it empty (or give the column another kind in data.columns and train again)"


# --- tables ----------------------------------------------------------------------------------------------------------


def with_text_names(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """The table with its column names as texts; `place` (a file, a function) is for the error's words.

    Raises:
        DataError: when two columns have one name.
    """
    table = table.set_axis(table.columns.map(str), axis=1)
    if not table.columns.is_unique:
        name = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{place}: the column '{name}' appears more than once; rename or remove one of them")
    return table


def require_columns(table: pd.DataFrame, names: Sequence[str], place: str) -> None:
    """Check that the table has every named column; `place` is the study's key that names them.

    Raises:
        DataError: for the first that is absent, with the closest of those that are there.
    """
    for name in names:
        if name not in table.columns:
            hint = did_you_mean(name, table.columns) or f" It has {_listed(table.columns)}."
            raise DataError(f"{place}: the table has no column '{name}'.{hint}")


def _listed(names: Sequence[Any] | pd.Index, most: int = 10) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def row_name(label: Hashable) -> str:
    """A row in words: counted from 1 after the header where rows are numbered, otherwise by its label."""
    return f"row {int(label) + 1}" if isinstance(label, int | np.integer) else f"row {label!r}"


def first_row(column: pd.Series, where: NDArray[np.bool_]) -> tuple[str, Any]:
    """The first row of `column` that `where` marks, in words, and its value."""
    position = int(np.argmax(where))
    return row_name(column.index[position]), column.iloc[position]


# --- kinds -----------------------------------------------------------------------------------------------------------


def infer_kind(column: pd.Series) -> ColumnKind | None:
    """The kind of a column's values, or None for what cannot be a feature (lists, bytes, durations, ...).

    Numbers are numeric, 0 and 1 included; text is categorical unless all of it is ISO dates or true and false.
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "categorical"
    if types.is_bool_dtype(dtype):
        return "boolean"
    if types.is_datetime64_any_dtype(dtype):
        return "date"
    if types.is_numeric_dtype(dtype):
        return None if types.is_complex_dtype(dtype) else "numeric"
    match types.infer_dtype(column, skipna=True):
        case "boolean":
            return "boolean"
        case "integer" | "floating" | "decimal" | "mixed-integer-float":
            return "numeric"
        case "date" | "datetime" | "datetime64":
            return "date"
        case "string" | "empty":
            return _kind_of_texts(column.dropna().unique())
        case "mixed" | "mixed-integer" if set(column.dropna().map(type)) <= {str, int, float, bool}:
            return "categorical"
        case _:
            return None


def _kind_of_texts(texts: Any) -> ColumnKind:
    if not len(texts):
        return "categorical"
    if all(ISO_DATE.fullmatch(text) for text in texts) and _dates(pd.Series(texts)).notna().all():
        return "date"
    return "boolean" if {text.lower() for text in texts} <= {"true", "false"} else "categorical"


# --- values ----------------------------------------------------------------------------------------------------------


def as_numbers(column: pd.Series, place: str, mend: str = OTHER_KIND) -> Numbers:
    """The column's numbers [N], NaN where missing; `place` and `mend` are for the error's words.

    Raises:
        DataError: for a value that is no number, or an infinite one.
    """
    if types.is_datetime64_any_dtype(column.dtype):
        raise DataError(f"{place} holds dates where numbers are expected; give it a column of numbers")
    plain = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
    numbers = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.isnan(numbers) & plain.notna().to_numpy()
    if wrong.any():
        row, value = first_row(plain, wrong)
        raise DataError(f"{place} holds {_short(value)} in {row} where a number is expected; {mend}")
    infinite = np.isinf(numbers)
    if infinite.any():
        row, _ = first_row(plain, infinite)
        raise DataError(
            f"{place} holds {counted(int(infinite.sum()), 'infinite value')} (the first in {row}); replace each by "
            "a number or leave it empty"
        )
    return numbers


def as_dates(column: pd.Series, place: str) -> pd.Series:
    """The column's points in time (UTC), NaT where missing.

    Raises:
        DataError: for a value that is neither a date nor a text in ISO form.
    """
    if types.is_numeric_dtype(column.dtype) and column.notna().any():
        raise DataError(f"{place} holds numbers where dates are expected; {OTHER_KIND}")
    dates = _dates(column)
    wrong = dates.isna().to_numpy() & column.notna().to_numpy()
    if wrong.any():
        row, value = first_row(column, wrong)
        raise DataError(
            f"{place} holds {_short(value)} in {row} where an ISO date (2024-12-31) is expected; {OTHER_KIND}"
        )
    return dates


def _dates(column: pd.Series) -> pd.Series:
    return pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")


def as_booleans(column: pd.Series, place: str, mend: str = OTHER_KIND) -> Numbers:
    """1 for true (also 1, yes, y, t), 0 for false, NaN where missing: [N].

    Raises:
        DataError: for any other value.
    """
    texts = as_texts(column, place)
    codes, words = pd.factorize(texts)
    values = np.array([*(BOOLEAN_WORDS.get(word.lower(), np.inf) for word in words), np.nan])
    booleans: Numbers = values[codes]
    if np.isinf(booleans).any():
        row, value = first_row(column, np.isinf(booleans))
        raise DataError(f"{place} holds {_short(value)} in {row} where true or false is expected; {mend}")
    return booleans


def as_texts(column: pd.Series, place: str) -> Texts:
    """The column's categories as texts, NaN where missing: [N]. Equal values have one spelling (see `text_of`).

    Raises:
        DataError: for values that are no categories, such as lists.
    """
    try:
        codes, values = pd.factorize(column)
    except TypeError:
        raise _compound(place) from None
    texts = np.array([*map(text_of, values), np.nan], dtype=object)
    return texts[codes]


def distinct_values(column: pd.Series, place: str) -> int:
    """How many distinct values there are, missing ones not counted.

    Raises:
        DataError: for values that have no equality, such as lists.
    """
    try:
        return int(column.nunique())
    except TypeError:
        raise _compound(place) from None


def _compound(place: str) -> DataError:
    return DataError(f"{place} holds lists or other compound values; give it a column of single values")


def text_of(value: object) -> str:
    """One spelling for equal values, so that 1, 1.0 and '1' are one category whatever a file's other rows hold."""
    plain = value.item() if isinstance(value, np.generic) else value
    return str(int(plain)) if isinstance(plain, float) and plain.is_integer() else str(plain)


def _short(value: object) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
