"""What every sharing scheme is to the model, the training loop and the balancers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from polyshot.models.mixture import Mixture
from polyshot.models.stacking import Rows


class SharingScheme(nn.Module, ABC):
    """[B, F] → what the heads read: one representation [B, H] for all tasks, or one for each.

    `outputs` is H. Parameters that no other task's loss reaches are said by `own`; all others are shared.
    """

    outputs: int

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor | Mixture:
        """Features [B, F] → one representation [B, H] for all tasks, or the mixture that makes one for each."""

    def penalty(self) -> Tensor:
        """The scheme's term of the loss [], which is added to the balanced task losses."""
        return torch.zeros(())

    def reads(self, task: int) -> int:
        """Equal for the tasks whose heads read the same representation."""
        return task

    def encoder_state(self, task: int) -> dict[str, Tensor] | None:  # noqa: ARG002 - here no task has one
        """The state of the one encoder that the task's head reads; None where it reads what several make together."""
        return None

    def own(self, task: int) -> Iterator[Rows]:  # noqa: ARG002 - here no task has any
        """The parameters that only `task` trains; tasks are numbered in the order of the study."""
        yield from ()
