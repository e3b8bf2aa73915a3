"""Which rows make up the batches of an epoch, and which of their labels count there.

The training loop asks for one epoch after another. What a sampler draws is a function of (seed, epoch) and, for dynamic
sampling, of the losses so far; batches are of all workers together, so that their number changes nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.study.training import (
    DynamicSampling,
    JointSampling,
    ProportionalSampling,
    RoundRobinSampling,
    RowSampling,
    TemperatureSampling,
    UniformSampling,
    WeightedSampling,
)


@dataclass(frozen=True)
class Batch:
    """One batch of all workers together.

    Attributes:
        rows: [B], positions in the training rows.
        counts: bool, [B, T] or [1, T]: of which tasks labels count; None, of all.
    """

    rows: Tensor
    counts: Tensor | None = None


class Sampler(ABC):
    """The batches of each epoch.

    Attributes:
        steps: batches of an epoch; all epochs have as many.
    """

    steps: int

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of the epoch `number`, from 1."""

    def end_epoch(self, losses: Tensor) -> None:  # noqa: B027 (most samplers do not look at them)
        """Called after each epoch with the mean training losses [T]."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (most have no state)
        """Go on as the sampler that gave `state`."""


class RowSampler(Sampler):
    """Every row once, in batches of equal sizes (within one row); passes over the rows may be cut into epochs."""

    def __init__(self, seed: int, rows: int, batch_size: int, device: torch.device, steps: int | None = None):
        """`steps` of an epoch are by default those of a pass."""
        self._steps_of_pass = math.ceil(rows / batch_size)
        self.steps = steps or self._steps_of_pass
        self._seed, self._rows, self._device = seed, rows, device

    def epoch(self, number: int) -> Iterator[Batch]:
        step, end = (number - 1) * self.steps, number * self.steps
        while step < end:
            passes, done = divmod(step, self._steps_of_pass)
            batches = self._pass(passes + 1)[done : done + end - step]
            yield from map(Batch, batches)
            step += len(batches)

    def _pass(self, number: int) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", number))
        order = torch.randperm(self._rows, generator=generator).to(self._device)
        return order.tensor_split(self._steps_of_pass)


class _TaskRows:
    """The rows that have each task's label, drawn without replacement and gone through again when they are used up."""

    def __init__(self, seed: int, mask: Tensor, batch_sizes: Sequence[int]):
        self._seed = seed
        self._rows = [known.nonzero()[:, 0].cpu() for known in mask.T]
        self.sizes = [len(rows) for rows in self._rows]
        self.batch_sizes = [min(size, wanted) for size, wanted in zip(self.sizes, batch_sizes, strict=True)]

    @property
    def batches(self) -> list[float]:
        """[T]: batches that it takes to see each task's rows once."""
        return [size / batch for size, batch in zip(self.sizes, self.batch_sizes, strict=True)]

    def draw(self, epoch: int, task: int, batches: int) -> Tensor:
        """[batches, b]: rows for so many batches of one task."""
        rows, total = self._rows[task], batches * self.batch_sizes[task]
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch, task))
        passes = [torch.randperm(len(rows), generator=generator) for _ in range(math.ceil(total / len(rows)))]
        return rows[torch.cat(passes)[:total]].view(batches, -1)


class JointSampler(Sampler):
    """Every batch has rows of every task. An epoch is a pass over the task that takes the most batches."""

    def __init__(self, seed: int, mask: Tensor, batch_sizes: Sequence[int]):
        self._rows = _TaskRows(seed, mask, batch_sizes)
        self._device = mask.device
        self.steps = math.ceil(max(self._rows.batches))
        sizes = self._rows.batch_sizes
        task_of_row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        # Evenly mixed, so that each worker's contiguous part of a batch has rows of every task.
        place = torch.cat([(torch.arange(size) + 0.5) / size for size in sizes])
        self._mixed = place.argsort(stable=True)
        self._counts = torch.nn.functional.one_hot(task_of_row[self._mixed], len(sizes)).bool().to(mask.device)

    def epoch(self, number: int) -> Iterator[Batch]:
        tasks = range(len(self._rows.sizes))
        rows = torch.cat([self._rows.draw(number, task, self.steps) for task in tasks], 1)[:, self._mixed]
        for batch in rows.to(self._device):
            yield Batch(batch, self._counts)


class TaskSampler(Sampler):
    """Every batch has rows of one task. An epoch has as many batches as it takes to see each label once.

    How many are of which task follows the shares, as nearly as whole batches allow and with at least one of each; only
    their order is random. So tasks of very different sizes keep their shares in every epoch, not only on average.
    """

    def __init__(self, seed: int, mask: Tensor, batch_sizes: Sequence[int]):
        self._seed = seed
        self._rows = _TaskRows(seed, mask, batch_sizes)
        self._device = mask.device
        self._tasks = mask.shape[1]
        self.steps = max(self._tasks, math.ceil(sum(self._rows.batches)))
        self._counts = torch.eye(self._tasks, dtype=torch.bool, device=mask.device).unsqueeze(1)  # [T, 1, T]

    @abstractmethod
    def shares(self) -> Tensor:
        """[T], above 0: how many of the batches are of each task, relative to each other."""

    def order(self, number: int) -> Tensor:
        """[steps], the task of each batch."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "tasks", number))
        tasks = torch.repeat_interleave(torch.arange(self._tasks), apportioned(self.shares(), self.steps))
        return tasks[torch.randperm(self.steps, generator=generator)]

    def epoch(self, number: int) -> Iterator[Batch]:
        order = self.order(number)
        batches = order.bincount(minlength=self._tasks).tolist()
        rows = [iter(self._rows.draw(number, task, n).to(self._device)) for task, n in enumerate(batches)]
        for task in order.tolist():
            yield Batch(next(rows[task]), self._counts[task])


class SizeSampler(TaskSampler):
    """In proportion to n^(1/temperature), n being the batches that a task's rows fill.

    Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild" (2019), section 4.
    """

    def __init__(self, seed: int, mask: Tensor, batch_sizes: Sequence[int], temperature: float):
        super().__init__(seed, mask, batch_sizes)
        self._temperature = temperature

    def shares(self) -> Tensor:
        return torch.tensor(self._rows.batches, dtype=torch.float64) ** (1 / self._temperature)


class WeightedSampler(TaskSampler):
    """In proportion to given weights [T]."""

    def __init__(self, seed: int, mask: Tensor, batch_sizes: Sequence[int], weights: Sequence[float]):
        super().__init__(seed, mask, batch_sizes)
        self._weights = torch.tensor(weights, dtype=torch.float64)

    def shares(self) -> Tensor:
        return self._weights


class RoundRobinSampler(WeightedSampler):
    """All tasks equally, in turn."""

    def __init__(self, seed: int, mask: Tensor, batch_sizes: Sequence[int]):
        super().__init__(seed, mask, batch_sizes, [1.0] * mask.shape[1])

    def order(self, number: int) -> Tensor:
        return (torch.arange(self.steps) + (number - 1) * self.steps) % self._tasks


class DynamicSampler(TaskSampler):
    """More batches of tasks that learn slowly: in proportion to (L_t / L_t of the first epoch)^strength.

    The ratio is the inverse training rate of GradNorm (Chen et al. 2018, eq. 2), here of whole epochs.
    """

    def __init__(self, seed: int, mask: Tensor, batch_sizes: Sequence[int], strength: float):
        super().__init__(seed, mask, batch_sizes)
        self._strength = strength
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def shares(self) -> Tensor:
        if self._first is None or self._last is None:
            return torch.ones(self._tasks, dtype=torch.float64)
        ratio = self._last / self._first.clamp(min=1e-12)
        return ratio.nan_to_num(1.0).clamp(1e-6, 1e6) ** self._strength

    def end_epoch(self, losses: Tensor) -> None:
        self._last = losses.detach().double().cpu()
        self._first = self._last if self._first is None else self._first

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self._last = state["first"], state["last"]


def build_sampler(study: Study, mask: Tensor) -> Sampler:
    """The study's `training.sampling` for training rows that have labels of the tasks in `mask` [N, T]."""
    seed, batch_size = study.seed, study.training.batch_size
    sizes = [task.batch_size or batch_size for task in study.tasks.values()]
    match study.training.sampling:
        case RowSampling():
            return RowSampler(seed, len(mask), batch_size, mask.device, study.training.steps_per_epoch)
        case JointSampling():
            return JointSampler(seed, mask, sizes)
        case ProportionalSampling():
            return SizeSampler(seed, mask, sizes, 1.0)
        case TemperatureSampling(temperature=temperature):
            return SizeSampler(seed, mask, sizes, temperature)
        case UniformSampling():
            return SizeSampler(seed, mask, sizes, math.inf)
        case WeightedSampling():
            return WeightedSampler(seed, mask, sizes, [task.sampling_weight for task in study.tasks.values()])
        case RoundRobinSampling():
            return RoundRobinSampler(seed, mask, sizes)
        case DynamicSampling(strength=strength):
            return DynamicSampler(seed, mask, sizes, strength)


def apportioned(shares: Tensor, total: int) -> Tensor:
    """`total` divided in proportion to `shares` [T] into whole numbers [T], each at least 1 (largest remainders)."""
    exact = shares / shares.sum() * total
    whole = exact.floor().clamp(min=1)
    while (missing := total - int(whole.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = whole > (0 if missing > 0 else 1)
        whole[(step * (exact - whole)).where(movable, -math.inf).argmax()] += step
    return whole.long()
