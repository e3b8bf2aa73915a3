"""Representations that are mixtures of experts, kept in parts for as long as that is cheaper.

Made by the sharing schemes; read by the heads, which are linear and can therefore come before the mixing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """h_t = Σ_k gates[k, :, t] own[t, k] + Σ_s gates[K + s, :, t] shared[s].

    Attributes:
        shared: [S, B, H], the experts of all tasks.
        gates: [K + S, B, T]; those of the own experts come first.
        own: [T, K, B, H], the experts of one task each.
    """

    shared: Tensor
    gates: Tensor
    own: Tensor | None = None

    def mixed(self) -> Tensor:
        """The representation of every task, [T, B, H]."""
        own_experts = 0 if self.own is None else self.own.shape[1]
        gates = self.gates[own_experts:].permute(1, 2, 0)  # [B, T, S]
        mixed = torch.matmul(gates, self.shared.transpose(0, 1)).transpose(0, 1)
        if self.own is None:
            return mixed
        return mixed + (self.own * self.gates[:own_experts].permute(2, 0, 1).unsqueeze(-1)).sum(1)
