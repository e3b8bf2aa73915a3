"""Hard parameter sharing: one encoder for all tasks.

Caruana, "Multitask Learning: A Knowledge-Based Source of Inductive Bias" (ICML 1993): h = f(x; θ_shared) and
ŷ_t = head_t(h).
"""

from __future__ import annotations

from torch import Tensor

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.sharing.base import SharingScheme


class HardSharing(SharingScheme):
    """[B, F] → [B, H], the same representation for every task."""

    def __init__(self, encoders: EncoderFactory):
        super().__init__()
        self.encoder = encoders.one()
        self.outputs: int = self.encoder.outputs  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        return self.encoder(features)
