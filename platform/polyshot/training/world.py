"""The workers of one data-parallel run, as the loop sees them: who am I, sum over all, gather from all.

A run alone is a world of one, in which every operation is the identity. Knows torch.distributed, and no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class World:
    """`rank` of `size` workers; with more than one, torch.distributed must have been initialised."""

    rank: int = 0
    size: int = 1

    def share(self, rows: Tensor) -> Tensor:
        """This worker's contiguous part of `rows` [N, ...]; parts differ by at most one row."""
        return rows if self.size == 1 else rows.tensor_split(self.size)[self.rank]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over workers (a new tensor; no gradient flows through it)."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of the floating-point `tensors` by its mean over workers, in place."""
        for tensor in tensors if self.size > 1 else ():
            if tensor.is_floating_point():
                torch.distributed.all_reduce(tensor)
                tensor /= self.size

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first worker's `tensor`, on all of them."""
        if self.size == 1:
            return tensor
        first = tensor.detach().clone()
        torch.distributed.broadcast(first, src=0)
        return first

    def gather(self, part: Tensor, total: int) -> Tensor:
        """All `total` rows in order, from the workers' `share`s [n, ...] of them."""
        if self.size == 1:
            return part
        longest = -(-total // self.size)
        padded = part.new_zeros((longest, *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded)
        sizes = [len(rows) for rows in torch.empty(total).tensor_split(self.size)]
        return torch.cat([rows[:size] for rows, size in zip(parts, sizes, strict=True)])
