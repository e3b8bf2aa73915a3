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
        return torch.cat([weights[name].flatten() for name in self.names])

    def split(self, flat: Tensor) -> Weights:
        """The weights as views of the vector [P]."""
        parts = flat.split([shape.numel() for shape in self.shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
