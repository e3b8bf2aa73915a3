"""Episodes: for each of many tasks some labelled rows to adapt to and others to be judged by, as stacked tensors.

Sources draw them. A draw is a function of the generator that it is given alone, so that a run that seeds one for every
iteration sees the same episodes on any number of workers and when it is taken up again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from polyshot.meta.objectives import Objective

Split = Literal["train", "validation", "test"]
Share = Callable[[Tensor], Tensor]  # [T, ...] → the rows of it that are this worker's


def everything(rows: Tensor) -> Tensor:
    """The share of a worker that is alone."""
    return rows


@dataclass(frozen=True)
class Episodes:
    """Of T tasks, K rows to adapt to and Q to be judged by.

    Attributes:
        support: inputs [T, K, ...].
        support_labels: [T, K]; float for regression, class indices (int64) for classification.
        query: inputs [T, Q, ...].
        query_labels: [T, Q].
        query_mask: [T, Q], false for rows that fill up the tasks that have fewer than Q; None where there are none.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    query_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.support)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Episodes:
        """On another device, and with inputs and real-valued labels of another type."""
        moved = [
            None if part is None else part.to(device, dtype if part.is_floating_point() else None)
            for part in self.parts()
        ]
        return Episodes(*moved)  # type: ignore[arg-type]

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self.support, self.support_labels, self.query, self.query_labels, self.query_mask


class EpisodeSource(Protocol):
    """Where episodes come from. Tasks of one split have nothing in common with those of another."""

    @property
    def name(self) -> str:
        """What its metrics are called by."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        ...

    @property
    def outputs(self) -> int:
        """That a task's predictor has: 1 for regression, the number of ways for classification."""
        ...

    @property
    def objective(self) -> Objective: ...

    def sample(self, split: Split, tasks: int, generator: torch.Generator, share: Share = everything) -> Episodes:
        """Draw `tasks` tasks of the split, and make the episodes of this worker's share of them."""
        ...


def choose(valid: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """In each row of `valid` [R, M], `count` distinct places that are true, in random order: [R, count].

    Where a row has fewer, places that are false come last.
    """
    keys = torch.rand(valid.shape, generator=generator).masked_fill_(~valid, -1.0)
    return keys.topk(count, dim=1).indices
