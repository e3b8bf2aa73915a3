"""Which columns of labels and masks belong to which task: one, or one for each label or word.

Everything that counts, samples or judges by task asks here; losses and metrics see the labels themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Self

import torch
from torch import Tensor

from polyshot.data.targets import Target


@dataclass(frozen=True)
class LabelLayout:
    """The columns of labels and mask [N, L] of each task, in the order of the study."""

    columns: tuple[slice, ...]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> Self:
        ends = accumulate((target.width for target in targets), initial=0)
        return cls(tuple(slice(start, stop) for start, stop in pairwise(ends)))

    @cached_property
    def one_each(self) -> bool:
        """Whether every task has one column, so that nothing need be done: L = T."""
        return self.columns[-1].stop == len(self.columns)

    def places(self, tasks: Sequence[int]) -> list[int]:
        """The columns of some tasks, in the order given."""
        return [place for task in tasks for place in range(self.columns[task].start, self.columns[task].stop)]

    def labelled(self, mask: Tensor) -> Tensor:
        """[N, L] → [N, T]: whether a row has a label of the task."""
        return mask if self.one_each else torch.stack([mask[:, own].any(1) for own in self.columns], 1)

    def totals(self, values: Tensor) -> Tensor:
        """[..., L] → [..., T]: each task's sum."""
        return values if self.one_each else torch.stack([values[..., own].sum(-1) for own in self.columns], -1)

    def repeated(self, values: Tensor) -> Tensor:
        """[B, T] → [B, L]: the task's value for each of its labels."""
        if self.one_each:
            return values
        return values[:, [task for task, own in enumerate(self.columns) for _ in range(own.start, own.stop)]]
