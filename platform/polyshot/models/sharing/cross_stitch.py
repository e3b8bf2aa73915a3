"""Cross-stitch networks: one encoder per task, whose activations are mixed linearly after every layer.

Misra et al., "Cross-stitch Networks for Multi-task Learning" (CVPR 2016), equation 1 for T tasks: the layer l + 1 of
task t reads x̃_t^l = Σ_s α_ts^l x_s^l, with a matrix α^l [T, T] that is learned for each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.sharing.base import SharingScheme


class CrossStitch(SharingScheme):
    """[B, F] → [T, B, H]. Every task's loss reaches all encoders and all α, so nothing here is a task's own."""

    def __init__(self, encoders: EncoderFactory, tasks: int, own_share: float):
        """`own_share` is α_tt at the start; the other tasks have equal parts of what is left, as in the paper."""
        super().__init__()
        self.layers = nn.ModuleList(encoders.stacked_layers(tasks, "cross_stitch"))
        self.outputs = encoders.widths("cross_stitch")[-1]
        start = torch.ones(1, 1)
        if tasks > 1:
            start = torch.full((tasks, tasks), (1 - own_share) / (tasks - 1)).fill_diagonal_(own_share)
        self.stitches = nn.Parameter(start.repeat(len(self.layers), 1, 1))  # [L, T, T]

    def forward(self, features: Tensor) -> Tensor:
        values, shared = features, True
        for layer, stitch in zip(self.layers, self.stitches, strict=True):
            own = layer(values, shared=shared)  # [T, B, H]
            values, shared = torch.matmul(stitch, own.flatten(1)).view(own.shape), False
        return values
