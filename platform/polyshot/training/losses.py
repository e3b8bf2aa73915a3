"""Task losses: how far the stacked outputs are from the labels that are there. Missing labels count for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from polyshot.data.labels import LabelLayout
from polyshot.data.targets import Target
from polyshot.models.heads import HeadLayout
from polyshot.study import Study

RowLosses = Callable[[Tensor, Tensor], Tensor]  # outputs, labels -> losses


def _multiclass(outputs: Tensor, labels: Tensor) -> Tensor:
    """[..., C] and [..., 1] → [..., 1]."""
    losses = F.cross_entropy(outputs.flatten(0, -2), labels.flatten().long(), reduction="none")
    return losses.view_as(labels)


def _words(outputs: Tensor, labels: Tensor) -> Tensor:
    """[B, W · C] and [B, W] → [B, W]."""
    of_words = outputs.unflatten(1, (labels.shape[1], -1))
    return F.cross_entropy(of_words.transpose(1, 2), labels.long(), reduction="none")


# Of tasks with one output per label: [..., l] and [..., l] -> [..., l].
_ELEMENTWISE: dict[tuple[str, str], RowLosses] = {
    ("regression", "mse"): lambda outputs, labels: (outputs - labels).square(),
    ("regression", "mae"): lambda outputs, labels: (outputs - labels).abs(),
    ("regression", "huber"): lambda outputs, labels: F.smooth_l1_loss(outputs, labels, reduction="none"),
    **{
        (kind, "cross_entropy"): lambda outputs, labels: F.binary_cross_entropy_with_logits(
            outputs, labels, reduction="none"
        )
        for kind in ("binary", "multilabel")
    },
}


class TaskLosses:
    """The loss of each task, summed over the labels that a batch has; tasks of one kind and loss are one operation."""

    def __init__(self, study: Study, targets: Sequence[Target], layout: HeadLayout):
        # Labels are put in the order of the outputs, in which tasks of one kind stand side by side.
        labels = LabelLayout.of(targets)
        tasks = sorted(range(len(targets)), key=lambda task: layout.columns[task].start)
        in_order = tasks == sorted(tasks)
        self._tasks = None if in_order else torch.tensor(tasks)
        self._labels = None if in_order else torch.tensor(labels.places(tasks))
        sizes = [targets[task].width for task in tasks]
        self._sizes = None if labels.one_each else sizes
        self._groups: list[tuple[RowLosses, slice, slice]] = []  # loss, columns of the outputs, columns of the labels
        before, end = None, 0
        for task, size in zip(tasks, sizes, strict=True):
            kind, columns = (targets[task].kind, study.tasks[targets[task].task].loss), layout.columns[task]
            start, end = end, end + size
            if kind == before and kind in _ELEMENTWISE:
                loss, first_columns, first_labels = self._groups.pop()
                group = (loss, slice(first_columns.start, columns.stop), slice(first_labels.start, end))
            else:
                loss = _words if kind[0] == "tokens" else _ELEMENTWISE.get(kind, _multiclass)
                group = (loss, columns, slice(start, end))
            self._groups.append(group)
            before = kind

    def __call__(self, outputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """`outputs` [..., B, O], `labels` and `mask` [..., B, L] → sums of losses [..., T]."""
        if self._labels is not None:
            self._labels = self._labels.to(labels.device)
            labels, mask = labels.index_select(-1, self._labels), mask.index_select(-1, self._labels)
        parts = [loss(outputs[..., columns], labels[..., own]) for loss, columns, own in self._groups]
        losses = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        sums = (losses * mask).sum(-2)  # [..., L]
        if self._sizes is not None:
            sums = torch.stack([own.sum(-1) for own in sums.split(self._sizes, -1)], -1)  # [..., T]
        if self._tasks is None:
            return sums
        self._tasks = self._tasks.to(sums.device)
        return torch.zeros_like(sums).index_copy(-1, self._tasks, sums)
