"""One linear head per task, all stacked into as few matrix products as their shapes allow: one, as a rule.

Eight separate heads cost about twice the training step of one stacked product. Tasks of one kind and loss stand next to
each other, so that their losses are one vectorised operation as well. Where words are labelled as well as rows, each
head reads the vectors of words or that of the row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.data.targets import Target
from polyshot.models.mixture import Mixture
from polyshot.models.stacking import Rows


@dataclass(frozen=True)
class HeadLayout:
    """Which columns of the stacked outputs [B, O] belong to which task (tasks in the order of the study)."""

    columns: tuple[slice, ...]
    width: int

    @classmethod
    def of(cls, targets: Sequence[Target]) -> HeadLayout:
        def place(task: int) -> tuple[int, str, int]:
            return targets[task].outputs, targets[task].kind, task

        return cls._in_order(sorted(range(len(targets)), key=place), [target.outputs for target in targets])

    @classmethod
    def of_weights(cls, targets: Sequence[Target]) -> HeadLayout:
        """Which rows of the heads' weights belong to which task, in the order of the study."""
        return cls._in_order(range(len(targets)), [target.head for target in targets])

    @classmethod
    def _in_order(cls, tasks: Sequence[int], sizes: Sequence[int]) -> HeadLayout:
        columns: dict[int, slice] = {}
        width = 0
        for task in tasks:
            columns[task] = slice(width, width + sizes[task])
            width += sizes[task]
        return cls(tuple(columns[task] for task in range(len(sizes))), width)


class Heads(nn.Module, ABC):
    """What tasks' outputs are made by.

    Attributes:
        places: P, the vectors of a representation: of the row, and of each of its words.
        layout: which outputs belong to which task.
        weights: which rows of `linear` do.
    """

    places: int = 1
    layout: HeadLayout
    weights: HeadLayout
    linear: nn.Linear

    @abstractmethod
    def forward(self, representation: Tensor | Mixture) -> Tensor:
        """→ the outputs [B, O] of all tasks."""

    def of_row(self, representation: Tensor) -> Tensor:
        """[..., P · H] → [..., H]: the row's vector, behind which those of its words stand."""
        return representation[..., : self.linear.in_features]

    def rows(self, task: int) -> Iterator[Rows]:
        """The parameters of one task's head."""
        for parameter in self.linear.parameters():
            yield Rows(parameter, self.weights.columns[task])


def build_heads(inputs: int, targets: Sequence[Target], places: int = 1) -> Heads:
    """Fresh heads for representations of `inputs` numbers, those of all places together."""
    if places == 1:
        return StackedHeads(inputs, HeadLayout.of(targets))
    return PlacedHeads(inputs // places, targets, places)


class PlacedHeads(Heads):
    """Heads on representations [B, P · H] that have a vector for the row and for each of its words.

    The head of a task of kind tokens reads every word [W, H] and gives [W · C]; all others read the row's vector.
    """

    def __init__(self, inputs: int, targets: Sequence[Target], places: int):
        """`inputs` is H."""
        super().__init__()
        self.places = places
        self.layout, self.weights = HeadLayout.of(targets), HeadLayout.of_weights(targets)
        self.linear = nn.Linear(inputs, self.weights.width)
        self._words = [target.places if target.kind == "tokens" else 0 for target in targets]
        self._order = sorted(range(len(targets)), key=lambda task: self.layout.columns[task].start)

    def forward(self, representation: Tensor | Mixture) -> Tensor:
        if isinstance(representation, Mixture):
            representation = representation.mixed()
        vectors = representation.unflatten(-1, (self.places, -1))  # [B, P, H], or [T, B, P, H]
        return torch.cat([self._of(task, vectors if vectors.dim() == 3 else vectors[task]) for task in self._order], 1)

    def _of(self, task: int, vectors: Tensor) -> Tensor:
        """[B, P, H] → the task's outputs."""
        rows, words = self.weights.columns[task], self._words[task]
        read = vectors[:, 1 : 1 + words] if words else vectors[:, 0]
        return F.linear(read, self.linear.weight[rows], self.linear.bias[rows]).flatten(1)


class StackedHeads(Heads):
    """Representations → [B, O]: each row of the weight belongs to one task only, and starts as in its own `nn.Linear`.

    Takes one representation [B, H] for all tasks, one for each [T, B, H], or a `Mixture` of them.
    """

    _task_of_column: Tensor  # [O]
    _gathered_rows: Tensor  # [O]: the weight's rows, by number of outputs, then task
    _output_order: Tensor  # [O]: its inverse

    def __init__(self, inputs: int, layout: HeadLayout):
        super().__init__()
        self.layout = self.weights = layout
        self.linear = nn.Linear(inputs, layout.width)

        outputs = [columns.stop - columns.start for columns in layout.columns]
        self._groups = [  # tasks whose heads are of one shape: their number of outputs, and which they are
            (size, [task for task, own in enumerate(outputs) if own == size]) for size in sorted(set(outputs))
        ]
        rows = [
            row
            for _, tasks in self._groups
            for task in tasks
            for row in range(layout.columns[task].start, layout.columns[task].stop)
        ]
        owner = {row: task for task, columns in enumerate(layout.columns) for row in range(columns.start, columns.stop)}
        order = torch.tensor(rows)
        self._in_order = rows == list(range(layout.width))
        self._one_column_each = [owner[row] for row in range(layout.width)] == list(range(len(outputs)))
        self.register_buffer("_gathered_rows", order, persistent=False)
        self.register_buffer("_output_order", order.argsort(), persistent=False)
        self.register_buffer(
            "_task_of_column", torch.tensor([owner[row] for row in range(layout.width)]), persistent=False
        )

    def forward(self, representation: Tensor | Mixture) -> Tensor:
        if isinstance(representation, Mixture):
            return self._of_mixture(representation)
        if representation.dim() == 2:
            return self.linear(representation)
        return self._of_own(representation) + self.linear.bias

    def _of_own(self, representation: Tensor) -> Tensor:
        """[T, B, H] → [B, O], without the bias."""
        weight = self.linear.weight if self._in_order else self.linear.weight[self._gathered_rows]
        products, start = [], 0
        for size, tasks in self._groups:
            own = representation if len(self._groups) == 1 else representation[tasks]  # [t, B, H]
            rows = weight[start : start + len(tasks) * size].unflatten(0, (len(tasks), size))  # [t, size, H]
            if size == 1:
                products.append((own * rows).sum(-1).T)  # a third of the time of a batched product with one column
            else:
                products.append(torch.matmul(own, rows.mT).transpose(0, 1).flatten(1))
            start += len(tasks) * size
        outputs = products[0] if len(products) == 1 else torch.cat(products, 1)
        return outputs if self._in_order else outputs[:, self._output_order]

    def _of_mixture(self, mixture: Mixture) -> Tensor:
        """The heads of the parts, then their mixture: W Σ g f = Σ g (W f), where O numbers are mixed and not T·H."""
        parts = F.linear(mixture.shared, self.linear.weight)  # [S, B, O]
        if mixture.own is not None:
            own = self._of_own(mixture.own.flatten(1, 2)).unflatten(0, mixture.own.shape[1:3])  # [K, B, O]
            parts = torch.cat([own, parts])
        gates = mixture.gates if self._one_column_each else mixture.gates[:, :, self._task_of_column]  # [K + S, B, O]
        return (gates * parts).sum(0) + self.linear.bias
