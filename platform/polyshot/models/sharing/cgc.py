"""Customized gate control (CGC): experts that all tasks share, experts of each task, and a gate per task over both.

Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
Recommendations" (RecSys 2020), equations 1 to 3: h_t(x) = w_t(x) S_t(x), w_t(x) = softmax(W_t x), where S_t stacks the
outputs of the experts of task t and of the shared ones. Each expert is an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.mixture import Mixture
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.stacking import Rows, Stacked, stack


class Extraction(nn.Module):
    """One level: K experts of each task and S shared ones, with the tasks' gates."""

    def __init__(self, own: Stacked, shared: Stacked, tasks: int, inputs: int):
        """`own` holds the T·K experts of the tasks, task by task; `inputs` is the width of what the gates read."""
        super().__init__()
        self.own_experts = own
        self.shared_experts = shared
        self._experts = own.copies // tasks
        self.gates = stack([nn.Linear(inputs, self._experts + shared.copies, bias=False) for _ in range(tasks)])

    def forward(self, for_tasks: Tensor, for_shared: Tensor) -> Mixture:
        """`for_tasks` [T, B, I] or, the same for all, [B, I], and `for_shared` [B, I], are what the experts read."""
        same = for_tasks.dim() == 2
        gates = self.gates(for_tasks, shared=same).softmax(-1)  # [T, B, K + S]
        inputs = for_tasks if same else for_tasks.repeat_interleave(self._experts, 0)
        own = self.own_experts(inputs, shared=same)  # [T·K, B, H]
        shared = self.shared_experts(for_shared, shared=True)  # [S, B, H]
        return Mixture(shared, gates.permute(2, 1, 0), own.unflatten(0, (-1, self._experts)))

    def own_rows(self, task: int) -> Iterator[Rows]:
        """The parameters of one task's experts."""
        for expert in range(task * self._experts, (task + 1) * self._experts):
            yield from self.own_experts.rows(expert)


class CGC(SharingScheme):
    """[B, F] → the mixture of a task's K experts and the S shared ones."""

    def __init__(self, encoders: EncoderFactory, tasks: int, shared_experts: int, task_experts: int):
        super().__init__()
        own, shared = encoders.stacked(tasks * task_experts), encoders.stacked(shared_experts)
        self.extraction = Extraction(own, shared, tasks, encoders.inputs)
        self.outputs = encoders.outputs

    def forward(self, features: Tensor) -> Mixture:
        return self.extraction(features, features)

    def own(self, task: int) -> Iterator[Rows]:
        yield from self.extraction.gates.rows(task)
        yield from self.extraction.own_rows(task)
