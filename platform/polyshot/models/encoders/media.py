"""What encoders of text and of images have in common: vectors of rows that are no plain numbers, rates of their own.

Base of the encoders beside it; sharing schemes and the training loop know them as encoders like any other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout


class MediaEncoder(nn.Module, ABC):
    """[B, F] → [B, P · H], P vectors of H numbers for each row: one of all of it, and one for each of W words.

    Attributes:
        inputs: what stands where in a row.
        places: P, 1 where no words are labelled.
        width: H.
        layers: what has something to learn, from the bottom.
    """

    rows_at_once = 64  # where no gradients are kept

    def __init__(self, inputs: InputLayout, width: int, learning_rate_factor: float = 1.0, layer_decay: float = 1.0):
        super().__init__()
        self.inputs = inputs
        self.places = 1 + inputs.words
        self.width = width
        self.outputs = self.places * width
        self._rate, self._decay = learning_rate_factor, layer_decay

    @property
    @abstractmethod
    def layers(self) -> list[nn.Module]: ...

    def forward(self, rows: Tensor) -> Tensor:
        return self.vectors(rows).flatten(1)

    def vectors(self, rows: Tensor) -> Tensor:
        """[B, F] → [B, P, H]."""
        if torch.is_grad_enabled() or len(rows) <= self.rows_at_once:
            return self.computed(rows)
        # Texts of like lengths together, since a batch is padded to its longest.
        order = self.inputs.lengths_of(rows).argsort(stable=True)
        vectors = torch.cat([self.computed(rows[some]) for some in order.split(self.rows_at_once)])
        return vectors[order.argsort()]

    @abstractmethod
    def computed(self, rows: Tensor) -> Tensor:
        """The same for rows that are computed together."""

    def learning_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Every parameter, and by what its learning rate is multiplied."""
        layers = self.layers
        powers = {
            id(parameter): len(layers) - 1 - place
            for place, layer in enumerate(layers)
            for parameter in layer.parameters()
        }
        for parameter in self.parameters():
            yield parameter, self._rate * self._decay ** powers.get(id(parameter), 0)
