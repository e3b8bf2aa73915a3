"""The multi-task attention network (MTAN): a soft mask per task over every layer's shared features.

Liu et al., "End-to-End Multi-Task Learning with Attention" (CVPR 2019), equations 1 and 2. With p^j = block_j(p^{j−1})
the shared features after block j of one encoder and p^0 = x, task t has in every layer

    a_t^j = h_t^j(g_t^j([p^{j−1}; f_t^j(â_t^{j−1})])),    â_t^j = a_t^j ⊙ p^j,

without the term of f in the first layer. The paper's convolutions are linear layers here, f and g followed by ReLU and
h by the sigmoid. Its batch normalisation is left to the encoder, and in the place of u^j, the features inside of block
j, g reads what the block reads, since a block may be a single layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.stacking import Rows, Stacked, stack


class AttentionSharing(SharingScheme):
    """[B, F] → [T, B, H]: the masked features of the last layer."""

    def __init__(self, encoders: EncoderFactory, tasks: int):
        super().__init__()
        self._tasks = tasks
        self.layers = nn.ModuleList(encoders.layers("attention"))
        widths = encoders.widths("attention")
        self.outputs = widths[-1]

        def stacked(inputs: int, outputs: int) -> Stacked:
            return stack([nn.Linear(inputs, outputs) for _ in range(tasks)])

        self.masks = nn.ModuleList()
        before = [encoders.inputs, *widths[:-1]]
        for layer, (inputs, width) in enumerate(zip(before, widths, strict=True)):
            mask = nn.ModuleDict({"f": stacked(inputs, inputs)} if layer > 0 else {})
            mask["g"] = stacked(2 * inputs if layer > 0 else inputs, width)
            mask["h"] = stacked(width, width)
            self.masks.append(mask)

    def forward(self, features: Tensor) -> Tensor:
        masked = features.new_empty(0)
        for layer, mask in zip(self.layers, self.masks, strict=True):
            read, features = features, layer(features)  # u [B, I] and p [B, H]
            if "f" in mask:  # type: ignore[operator]
                carried = F.relu(mask["f"](masked, shared=False))  # type: ignore[index]
                joined = torch.cat([read.expand(self._tasks, -1, -1), carried], -1)  # [T, B, 2 I]
                hidden = mask["g"](joined, shared=False)  # type: ignore[index]
            else:
                hidden = mask["g"](read, shared=True)  # type: ignore[index]
            masked = torch.sigmoid(mask["h"](F.relu(hidden), shared=False)) * features  # type: ignore[index]
        return masked

    def own(self, task: int) -> Iterator[Rows]:
        for mask in self.masks:
            for linear in mask.children():
                yield from linear.rows(task)  # type: ignore[operator]
