"""Entities in labels of words, counted: how many there are, are found, and are both. Metrics and the bootstrap ask.

An entity is a run of words of one type, in the sense of the CoNLL 2003 task and of seqeval's default mode: it begins at
`B-`, or at `I-` of another type than the word before it has, and ends before the next one or `O`. One that is found
counts where its type, its first and its last word are right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TYPES = 1 << 16  # more than there are types of entities
Codes = NDArray[np.floating]  # [n, W], see `data.words.entity_codes`


def entity_counts(labels: Codes, decided: Codes) -> NDArray[np.float64]:
    """Of each row, how many entities both have, how many `labels` has, and how many `decided` has: [n, 3].

    Args:
        labels: NaN behind the last word, where nothing counts.
    """
    there = ~np.isnan(labels)
    true, found = (_entities(np.where(there, codes, 0).astype(np.int64)) for codes in (labels, decided))
    of_row = labels.shape[1] ** 2 * _TYPES  # numbers that the entities of one row may have
    counts = [np.bincount(some // of_row, minlength=len(labels)) for some in (np.intersect1d(true, found), true, found)]
    return np.stack(counts, 1).astype(np.float64)


def _entities(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each entity, in ascending order, that tells its row, first and last word and type."""
    width = codes.shape[1]
    kinds = np.where(codes > 0, (codes - 1) // 2, -1)
    before = np.pad(kinds, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    after = np.pad(kinds, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]
    begins = (codes > 0) & ((codes % 2 == 1) | (before != kinds))
    next_begins = np.pad(begins, ((0, 0), (0, 1)))[:, 1:]
    ends = (codes > 0) & (next_begins | (after != kinds))
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    return (first * width + last % width) * _TYPES + kinds.ravel()[first]
