"""Task losses: how far the stacked outputs are from the labels that are there. Missing labels count for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from polyshot.data.targets import Target
from polyshot.models.heads import HeadLayout
from polyshot.study import Study

RowLosses = Callable[[Tensor, Tensor], Tensor]  # outputs, labels -> losses


def _multiclass(outputs: Tensor, labels: Tensor) -> Tensor:
    """[B, C] and [B, 1] → [B, 1]."""
    return F.cross_entropy(outputs, labels[:, 0].long(), reduction="none").unsqueeze(1)


# Of tasks with one output: [B, t] and [B, t] -> [B, t].
_ELEMENTWISE: dict[tuple[str, str], RowLosses] = {
    ("regression", "mse"): lambda outputs, labels: (outputs - labels).square(),
    ("regression", "mae"): lambda outputs, labels: (outputs - labels).abs(),
    ("regression", "huber"): lambda outputs, labels: F.smooth_l1_loss(outputs, labels, reduction="none"),
    ("binary", "cross_entropy"): lambda outputs, labels: F.binary_cross_entropy_with_logits(
        outputs, labels, reduction="none"
    ),
}


class TaskLosses:
    """The loss of each task, summed over the labels that a batch has; tasks of one kind and loss are one operation."""

    def __init__(self, study: Study, targets: Sequence[Target], layout: HeadLayout):
        # Labels are put in the order of the outputs, in which tasks of one kind stand side by side.
        order = sorted(range(len(targets)), key=lambda task: layout.columns[task].start)
        self._order = None if order == sorted(order) else torch.tensor(order)
        self._groups: list[tuple[RowLosses, slice, slice]] = []  # loss, columns of the outputs, columns of the labels
        before: tuple[str, str] | None = None
        for place, task in enumerate(order):
            kind, columns = (targets[task].kind, study.tasks[targets[task].task].loss), layout.columns[task]
            if kind == before and kind in _ELEMENTWISE:
                loss, first_columns, first_labels = self._groups.pop()
                group = (loss, slice(first_columns.start, columns.stop), slice(first_labels.start, place + 1))
            else:
                group = (_ELEMENTWISE.get(kind, _multiclass), columns, slice(place, place + 1))
            self._groups.append(group)
            before = kind

    def __call__(self, outputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """`outputs` [B, O], `labels` and `mask` [B, T] → sums of losses [T]."""
        if self._order is not None:
            self._order = self._order.to(labels.device)
            labels, mask = labels.index_select(1, self._order), mask.index_select(1, self._order)
        parts = [loss(outputs[:, columns], labels[:, tasks]) for loss, columns, tasks in self._groups]
        losses = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        sums = (losses * mask).sum(0)
        return sums if self._order is None else torch.zeros_like(sums).index_copy(0, self._order, sums)
