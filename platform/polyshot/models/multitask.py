"""The multi-task model: sharing scheme, then stacked heads; and the one place where a study's model is wired together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyshot.data.targets import Target
from polyshot.models.encoders import build_encoder
from polyshot.models.heads import HeadLayout, StackedHeads
from polyshot.models.sharing import HardSharing
from polyshot.study import Study


class MultiTaskModel(nn.Module):
    """[B, F] → [B, O], the outputs of all tasks side by side as `layout` says."""

    def __init__(self, sharing: HardSharing, heads: StackedHeads):
        super().__init__()
        self.sharing = sharing
        self.heads = heads

    @property
    def layout(self) -> HeadLayout:
        return self.heads.layout

    def forward(self, features: Tensor) -> Tensor:
        return self.heads(self.sharing(features))


def build_model(study: Study, inputs: int, targets: Sequence[Target]) -> MultiTaskModel:
    """The study's model with fresh weights, the same ones for the same `study.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        sharing = HardSharing(lambda: build_encoder(study, inputs))
        return MultiTaskModel(sharing, StackedHeads(sharing.outputs, HeadLayout.of(targets)))
