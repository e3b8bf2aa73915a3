"""Grouped sharing: hard sharing within groups of tasks, one encoder for each group.

Tasks that harm each other are kept apart and tasks that help each other together, as Standley et al., "Which Tasks
Should Be Learned Together in Multi-task Learning?" (ICML 2020) do with separate networks; here they are one model:
h = f_g(x; θ_g) and ŷ_t = head_t(h_{g(t)}). All tasks in one group is hard sharing, a group each is learning alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.stacking import Rows


class GroupedSharing(SharingScheme):
    """[B, F] → [T, B, H]: every task reads the encoder of its group."""

    _encoder_of_task: Tensor  # [T]

    def __init__(self, encoders: EncoderFactory, groups: Sequence[Sequence[int]]):
        """`groups` are of tasks, each in one of them."""
        super().__init__()
        # Apart from each other, since a parameter has rows of single tasks or of several, and not of both.
        shared = [group for group in groups if len(group) > 1]
        alone = [group for group in groups if len(group) == 1]
        self.encoders = nn.ModuleList(encoders.stacked(len(some)) for some in (shared, alone) if some)
        self.outputs = encoders.outputs
        self._alone = [task for (task,) in alone]
        place = {task: number for number, group in enumerate([*shared, *alone]) for task in group}
        order = torch.tensor([place[task] for task in range(len(place))])
        self.register_buffer("_encoder_of_task", order, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        representations = [stacked(features, shared=True) for stacked in self.encoders]
        return torch.cat(representations)[self._encoder_of_task]

    def reads(self, task: int) -> int:
        return int(self._encoder_of_task[task])

    def encoder_state(self, task: int) -> dict[str, Tensor]:
        states = [some.state_of(copy) for some in self.encoders for copy in range(some.copies)]  # type: ignore[operator, arg-type]
        return states[self.reads(task)]

    def own(self, task: int) -> Iterator[Rows]:
        """The encoder of a group of one."""
        if task in self._alone:
            yield from self.encoders[-1].rows(self._alone.index(task))  # type: ignore[operator]
