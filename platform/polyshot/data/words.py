"""Sequences in one cell of a table: the words of a text and their labels, as lists or as texts with spaces between.

Called by the reading of text columns and of the targets of tasks of kind tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def words_of(value: Any) -> list[str]:
    """A cell's words; none where it is missing."""
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list | tuple | np.ndarray):
        return [str(word) for word in value]
    return [] if value is None or value != value else [str(value)]


def holds_lists(column: pd.Series) -> bool:
    """Whether a column has lists of words rather than texts."""
    known = column.dropna()
    return len(known) > 0 and isinstance(known.iloc[0], list | tuple | np.ndarray)


OUTSIDE = "O"  # of every entity


def is_bio(label: str) -> bool:
    """Whether a label is `O`, `B-type` or `I-type`."""
    return label == OUTSIDE or _parts(label) is not None


def entity_codes(labels: Sequence[str]) -> NDArray[np.int64]:
    """A number for each label [C]: 0 for `O`, 2k + 1 for `B-` and 2k + 2 for `I-` of the k-th type, from 0.

    A label that is not in BIO form is `B-` of a type of its own.
    """
    types: dict[str, int] = {}
    codes = []
    for label in labels:
        if label == OUTSIDE:
            codes.append(0)
            continue
        prefix, kind = _parts(label) or ("B", label)
        codes.append(2 * types.setdefault(kind, len(types)) + (1 if prefix == "B" else 2))
    return np.array(codes, dtype=np.int64)


def _parts(label: str) -> tuple[str, str] | None:
    prefix, dash, kind = label.partition("-")
    return (prefix, kind) if dash and kind and prefix in ("B", "I") else None
