"""One linear head per task, all stacked into a single matrix product.

Eight separate heads cost about twice the training step of one stacked product. Tasks of one kind and loss stand next to
each other, so that their losses are one vectorised operation as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from polyshot.data.targets import Target


@dataclass(frozen=True)
class HeadLayout:
    """Which columns of the stacked outputs [B, O] belong to which task (tasks in the order of the study)."""

    columns: tuple[slice, ...]
    width: int

    @classmethod
    def of(cls, targets: Sequence[Target]) -> HeadLayout:
        ordered = sorted(range(len(targets)), key=lambda task: (targets[task].kind, task))
        columns: dict[int, slice] = {}
        width = 0
        for task in ordered:
            columns[task] = slice(width, width + targets[task].outputs)
            width += targets[task].outputs
        return cls(tuple(columns[task] for task in range(len(targets))), width)


class StackedHeads(nn.Module):
    """[B, H] → [B, O]: each row of the weight belongs to one task only, initialised as `nn.Linear` would alone."""

    def __init__(self, inputs: int, layout: HeadLayout):
        super().__init__()
        self.layout = layout
        self.linear = nn.Linear(inputs, layout.width)

    def forward(self, representation: Tensor) -> Tensor:
        return self.linear(representation)
