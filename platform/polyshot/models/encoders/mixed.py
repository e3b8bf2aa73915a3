"""An encoder of tables with several kinds of columns: numbers, text and images, each read by its own, then together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout
from polyshot.models.encoders.images import ImageEncoder
from polyshot.models.encoders.media import MediaEncoder
from polyshot.models.encoders.mlp import MLPEncoder
from polyshot.models.encoders.transformer import TransformerEncoder
from polyshot.study.model import Mixed


class MixedEncoder(MediaEncoder):
    """[B, F] → [B, P · H]: a perceptron over numbers and the normalised vectors of text and images, for each word's
    vector as for the row's.
    """

    rows_at_once = 1 << 30  # its parts see to theirs

    def __init__(self, inputs: InputLayout, settings: Mixed, folder: Path = Path()):
        """
        Raises:
            PolyshotError: as the encoders of text and images.
        """
        super().__init__(inputs, settings.fusion.width)
        parts: list[MediaEncoder] = []
        if settings.text is not None:
            parts.append(TransformerEncoder(inputs, settings.text, folder))
        if settings.image is not None:
            parts.append(ImageEncoder(inputs, settings.image, folder))
        self.parts = nn.ModuleList(parts)
        self.fusion = MLPEncoder(inputs.numbers + sum(part.width for part in parts), settings.fusion)

    def computed(self, rows: Tensor) -> Tensor:
        numbers = self.inputs.numbers_of(rows).unsqueeze(1).expand(-1, self.places, -1)
        vectors = [part(rows).unflatten(1, (self.places, -1)) for part in self.parts]
        read = torch.cat([numbers, *(F.layer_norm(part, part.shape[-1:]) for part in vectors)], 2)  # [B, P, ·]
        return self.fusion(read.flatten(0, 1)).unflatten(0, read.shape[:2])

    @property
    def layers(self) -> list[nn.Module]:
        return [*self.parts, *self.fusion.blocks]

    def learning_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        yield from ()  # its parts say theirs
