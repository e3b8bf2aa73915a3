"""Feature mapping: the source's features, each weighed by a learnt share, φ(h) = h ⊙ softmax(w) · H.

The encoder stays as it is; w [H] and the heads are trained. The factor H, which linear heads could take in as well, has
training begin at the source's features themselves (w = 0). Afterwards the map is taken into the heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyshot.study.transfer import FeatureMapping
from polyshot.transfer.model import TransferModel, Wrapped
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, on_source, plainly_weighed, require_rows


class Mapped(Wrapped):
    """[B, F] → [B, H]."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.outputs = int(encoder.outputs)  # type: ignore[arg-type]
        self.logits = nn.Parameter(torch.zeros(self.outputs))

    @property
    def shares(self) -> Tensor:
        """[H], of mean 1."""
        return self.outputs * self.logits.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        return self.encoder(features) * self.shares

    def unwrap(self, weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        return self.encoder, weight * self.shares, bias

    def train(self, mode: bool = True) -> Mapped:
        super().train(mode)
        self.encoder.eval()
        return self


def prepare(settings: FeatureMapping, problem: Problem) -> Start:
    require_rows(problem, settings.kind)
    start = on_source(problem, settings)
    assert isinstance(start.model, TransferModel)
    start.model.sharing.encoder = Mapped(start.model.encoder)
    return Start(plainly_weighed(start.study), start.prepared, start.saved, start.model)
