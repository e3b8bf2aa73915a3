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

    def reads(self, task: int) -> int:  # noqa: ARG002 - all read the same
        return 0

    def encoder_state(self, task: int) -> dict[str, Tensor]:  # noqa: ARG002 - as above
        return self.encoder.state_dict()
