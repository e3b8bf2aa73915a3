"""Multi-gate mixture-of-experts (MMoE): experts that all tasks share, and a gate per task that weighs them.

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts" (KDD 2018), equations
6 and 7: h_t(x) = Σ_e g_t(x)_e f_e(x), g_t(x) = softmax(W_t x), with W_t [E, F]. Each expert f_e is an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.mixture import Mixture
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.stacking import Rows, stack


class MMoE(SharingScheme):
    """[B, F] → the mixture of E experts for each task."""

    def __init__(self, encoders: EncoderFactory, tasks: int, experts: int):
        super().__init__()
        self.experts = encoders.stacked(experts)
        self.gates = stack([nn.Linear(encoders.inputs, experts, bias=False) for _ in range(tasks)])
        self.outputs = encoders.outputs

    def forward(self, features: Tensor) -> Mixture:
        gates = self.gates(features, shared=True).softmax(-1)  # [T, B, E]
        return Mixture(self.experts(features, shared=True), gates.permute(2, 1, 0))

    def own(self, task: int) -> Iterator[Rows]:
        return self.gates.rows(task)
