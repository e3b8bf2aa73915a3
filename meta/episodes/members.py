"""Rows by what they belong to, a class or a group, as one padded table: drawing from all is a tensor operation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyshot.meta.episodes.base import choose


@dataclass(frozen=True)
class Members:
    """Which rows belong to each of C owners.

    Attributes:
        rows: positions [C, M]; an owner with fewer than M rows has its first one again in the places left over.
        counts: how many rows each owner has, [C].
    """

    rows: Tensor
    counts: Tensor

    @classmethod
    def of(cls, owners: NDArray[np.int64]) -> Members:
        """From each row's owner [R], numbered from 0 without a gap."""
        counts = np.bincount(owners)
        order = np.argsort(owners, kind="stable")
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        places = np.arange(counts.max())
        positions = np.where(places < counts[:, None], starts[:, None] + places, starts[:, None])
        return cls(torch.from_numpy(order[positions]), torch.from_numpy(counts))

    def draw(self, owners: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` rows of each of the `owners` [N] in random order: [N, count], and which are no repetition."""
        known = torch.arange(self.rows.shape[1]) < self.counts[owners].unsqueeze(1)
        places = choose(known, count, generator)
        return self.rows[owners].gather(1, places), known.gather(1, places)
