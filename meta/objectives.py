"""How a task's outputs are judged: a loss to differentiate and a metric to report, one value for each task of many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


class Objective(ABC):
    """Judges outputs [T, N, O] by labels [T, N]; rows that `mask` [T, N] leaves out do not count."""

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    label_type: ClassVar[torch.dtype]

    def losses(self, outputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean loss of each task's rows, [T]."""
        return _means(self._row_losses(outputs, labels), mask)

    @abstractmethod
    def metrics(self, outputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """The metric of each task, [T]."""

    @abstractmethod
    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        """The labels [T, N] as numbers [T, N, outputs] that a linear model can be fitted to."""

    @abstractmethod
    def _row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """[T, N, O], [T, N] → [T, N]."""


class SquaredError(Objective):
    """Regression of one number, in units of `scale`; the metric is in the square of its own units."""

    metric = "mse"
    higher_is_better = False
    label_type = torch.float32

    def __init__(self, scale: float = 1.0):
        self._scale = scale

    def metrics(self, outputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.losses(outputs, labels, mask) * self._scale**2

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        assert outputs == 1
        return labels.unsqueeze(2)

    def _row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.squeeze(2) - labels).square()


class CrossEntropy(Objective):
    """Classification; labels are class indices."""

    metric = "accuracy"
    higher_is_better = True
    label_type = torch.int64

    def metrics(self, outputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        return _means((outputs.argmax(2) == labels).to(outputs.dtype), mask)

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        return F.one_hot(labels, outputs)

    def _row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def _means(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(1)
    return (values * mask).sum(1) / mask.sum(1)
