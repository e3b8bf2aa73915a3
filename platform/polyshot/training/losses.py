"""Task losses: how far the stacked outputs are from the labels that are there. Missing labels count for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from polyshot.data.targets import Target
from polyshot.models.heads import HeadLayout
from polyshot.study import Study

# Elementwise losses of tasks with one output: (outputs, labels) [B, t] -> [B, t].
_ELEMENTWISE: dict[tuple[str, str], Any] = {
    ("regression", "mse"): lambda outputs, labels: (outputs - labels).square(),
    ("regression", "mae"): lambda outputs, labels: (outputs - labels).abs(),
    ("regression", "huber"): lambda outputs, labels: F.smooth_l1_loss(outputs, labels, reduction="none"),
    ("binary", "cross_entropy"): lambda outputs, labels: F.binary_cross_entropy_with_logits(
        outputs, labels, reduction="none"
    ),
}


class TaskLosses:
    """The loss of each task, summed over the labels that a batch has."""

    def __init__(self, study: Study, targets: Sequence[Target], layout: HeadLayout):
        self._tasks = len(targets)
        self._groups: list[tuple[Any, list[int], list[int]]] = []  # loss, tasks, their output columns
        self._multiclass: list[tuple[int, slice]] = []
        groups: dict[tuple[str, str], list[int]] = {}
        for index, target in enumerate(targets):
            if target.kind == "multiclass":
                self._multiclass.append((index, layout.columns[index]))
            else:
                groups.setdefault((target.kind, study.tasks[target.task].loss), []).append(index)
        for key, tasks in groups.items():
            self._groups.append((_ELEMENTWISE[key], tasks, [layout.columns[task].start for task in tasks]))
        self._one_group = len(self._groups) == 1 and not self._multiclass

    def __call__(self, outputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """`outputs` [B, O], `labels` and `mask` [B, T] → sums of losses [T]."""
        if self._one_group:  # all tasks alike: no gathering of columns
            return (self._groups[0][0](outputs, labels) * mask).sum(0)
        sums = outputs.new_zeros(self._tasks)
        for loss, tasks, columns in self._groups:
            sums[tasks] = (loss(outputs[:, columns], labels[:, tasks]) * mask[:, tasks]).sum(0)
        for task, columns in self._multiclass:
            losses = F.cross_entropy(outputs[:, columns], labels[:, task].long(), reduction="none")
            sums[task] = torch.dot(losses, mask[:, task].to(losses.dtype))
        return sums
