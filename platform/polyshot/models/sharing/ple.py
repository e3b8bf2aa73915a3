"""Progressive layered extraction (PLE): levels of customized gate control, the last of which feeds the heads.

Tang et al. (RecSys 2020, as for CGC), equations 5 and 6: the experts of task t on level j read g_t^{j−1}(x), the
mixture of its own and the shared experts one level below. The shared experts read g_s^{j−1}(x), which a shared gate
mixes from all experts one level below, those of every task included. Gates read what their experts read:
w_t^j = softmax(W_t^j g_t^{j−1}(x)) with g_t^0(x) = x.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from polyshot.errors import Problem, StudyError
from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.mixture import Mixture
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.sharing.cgc import Extraction
from polyshot.models.stacking import Rows, StackedSequential


class PLE(SharingScheme):
    """[B, F] → the mixtures of the last level.

    An expert of level j is the j-th part of an encoder's layers, so that the network is as deep as with hard sharing.
    """

    def __init__(self, encoders: EncoderFactory, tasks: int, levels: int, shared_experts: int, task_experts: int):
        """
        Raises:
            StudyError: when the encoder has fewer layers than there are levels.
        """
        super().__init__()
        widths = encoders.widths("ple")
        if levels > len(widths):
            message = f"{levels} levels were asked for and the encoder has {len(widths)} layers; add layers or use cgc"
            raise StudyError([Problem("model.sharing.levels", message)])
        own, shared = (encoders.stacked_layers(n, "ple") for n in (tasks * task_experts, shared_experts))
        self.outputs = widths[-1]
        self.levels = nn.ModuleList()
        self.shared_gates = nn.ModuleList()
        inputs = encoders.inputs
        for level in range(levels):
            part = slice(len(widths) * level // levels, len(widths) * (level + 1) // levels)
            self.levels.append(
                Extraction(
                    StackedSequential(own[part], tasks * task_experts),
                    StackedSequential(shared[part], shared_experts),
                    tasks,
                    inputs,
                )
            )
            if level < levels - 1:  # nothing reads a shared gate of the last level
                self.shared_gates.append(nn.Linear(inputs, tasks * task_experts + shared_experts, bias=False))
            inputs = widths[part.stop - 1]

    def forward(self, features: Tensor) -> Mixture:
        for_tasks = for_shared = features
        for level, shared_gate in zip(self.levels, self.shared_gates, strict=False):
            mixture: Mixture = level(for_tasks, for_shared)
            assert mixture.own is not None
            experts = torch.cat([mixture.own.flatten(0, 1), mixture.shared])  # [T·K + S, B, H]
            gate = shared_gate(for_shared).softmax(-1).T.unsqueeze(-1)  # [T·K + S, B, 1]
            for_tasks, for_shared = mixture.mixed(), Mixture(experts, gate).mixed().squeeze(0)
        return self.levels[-1](for_tasks, for_shared)

    def own(self, task: int) -> Iterator[Rows]:
        """The experts of the last level and the gates of the last two: shared gates carry all else to other tasks."""
        for level in self.levels[-2:]:
            yield from level.gates.rows(task)  # type: ignore[union-attr, operator]
        yield from self.levels[-1].own_rows(task)  # type: ignore[operator]
