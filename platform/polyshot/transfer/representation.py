"""What one task's head reads, as an encoder: for sources whose tasks read mixtures, each one of its own.

A source makes it of its model (`Source.encoder`); studies of what is saved name it, so that it is built again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyshot.data.inputs import InputLayout
from polyshot.models.encoders import make_encoder
from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.mixture import Mixture
from polyshot.models.sharing import build_sharing
from polyshot.study.model import Model


class TaskRepresentation(nn.Module):
    """[B, F] → [B, H]: a whole sharing scheme, of which one task's representation is taken."""

    def __init__(self, inputs: int | InputLayout, model: dict[str, Any], tasks: list[str], task: str):
        """`model`: the section of the study that the scheme was built by; `tasks`: of that study."""
        super().__init__()
        settings = Model.model_validate(model)
        encoders = EncoderFactory(lambda: make_encoder(settings.encoder, inputs), inputs, settings.encoder.kind)
        self.sharing = build_sharing(settings.sharing, tasks, encoders)
        self.outputs = self.sharing.outputs
        self._place = tasks.index(task)

    def forward(self, features: Tensor) -> Tensor:
        read = self.sharing(features)
        if isinstance(read, Mixture):
            read = read.mixed()
        return read[self._place] if read.dim() == 3 else read
