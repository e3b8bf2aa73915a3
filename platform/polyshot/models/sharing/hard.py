"""Hard parameter sharing: one encoder for all tasks.

Caruana, "Multitask Learning: A Knowledge-Based Source of Inductive Bias" (ICML 1993): h = f(x; θ_shared), ŷ_t = head_t(h).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class HardSharing(nn.Module):
    """[B, F] → [B, H], the same representation for every task."""

    def __init__(self, make_encoder: Callable[[], nn.Module]):
        super().__init__()
        self.encoder = make_encoder()
        self.outputs: int = self.encoder.outputs  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        return self.encoder(features)
