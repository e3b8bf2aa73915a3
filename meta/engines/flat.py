"""Meta-weights as one vector: what optimisers, checkpoints and all-reduce handle at a fraction of the cost of many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyshot.meta.stacked import Weights


@dataclass(frozen=True)
class FlatLayout:
    """Where each weight lies in the vector [P]."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, weights: Weights) -> FlatLayout:
        return cls(tuple(weights), tuple(value.shape for value in weights.values()))

    @property
    def size(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes)

    def join(self, weights: Weights) -> Tensor:
        """The weights as a vector [P]."""
        return torch.cat([_inner(weights[name]).flatten() for name in self.names])

    def split(self, flat: Tensor) -> Weights:
        """The weights as views of the vector [P]."""
        parts = flat.split([shape.numel() for shape in self.shapes])
        return {name: _view(part, shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


# The weights of convolutions lie there with their channels innermost, as these want them (`meta.convolutions`).


def _inner(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight


def _view(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return part.view(shape)
    out, channels, height, width = shape
    return part.view(out, height, width, channels).permute(0, 3, 1, 2)
