"""The multi-task model: sharing scheme, then stacked heads.

The one place where a study's model is wired together; used by the training loop, the balancers and saved models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout, layout_of
from polyshot.data.targets import Target
from polyshot.models.encoders import build_encoder
from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.encoders.media import MediaEncoder
from polyshot.models.heads import HeadLayout, Heads, build_heads
from polyshot.models.mixture import Mixture
from polyshot.models.sharing import SharingScheme, build_sharing
from polyshot.models.stacking import Rows
from polyshot.study import Study


class MultiTaskModel(nn.Module):
    """[B, F] → [B, O], the outputs of all tasks side by side as `layout` says."""

    def __init__(self, sharing: SharingScheme, heads: Heads):
        super().__init__()
        self.sharing = sharing
        self.heads = heads

    @property
    def layout(self) -> HeadLayout:
        return self.heads.layout

    def forward(self, features: Tensor) -> Tensor:
        return self.heads(self.sharing(features))

    def representation(self, features: Tensor) -> Tensor:
        """What the heads read: [B, H] where all tasks read the same, else [T, B, H]. `heads` takes either."""
        representation = self.sharing(features)
        return representation.mixed() if isinstance(representation, Mixture) else representation

    def penalty(self) -> Tensor:
        """The sharing scheme's term of the loss [], to be added to the balanced task losses (0 for most schemes)."""
        return self.sharing.penalty()

    def begin_epoch(self, number: int) -> None:
        """Called before each epoch of training, from 1, for what changes from one to the next."""

    def learning_rates(self) -> Sequence[tuple[Rows, float]]:
        """Parameters that learn at another rate than the others, each with its factor."""
        return [
            (Rows(parameter, slice(None)), factor)
            for module in self.sharing.modules()
            if isinstance(module, MediaEncoder)
            for parameter, factor in module.learning_rates()
        ]

    def shared_parameters(self) -> list[nn.Parameter]:
        """The parameters that more than one task's loss may reach; where tasks pull against each other."""
        own = {id(part.parameter) for task in range(len(self.layout.columns)) for part in self.task_parameters(task)}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def task_parameters(self, task: int) -> list[Rows]:
        """The rows of parameters that no other task's loss reaches: its head, and what the scheme gives it alone.

        A parameter that has rows of one task has rows of tasks only. `task` counts in the order of the study.
        """
        return [*self.sharing.own(task), *self.heads.rows(task)]


def build_model(study: Study, inputs: int | InputLayout, targets: Sequence[Target]) -> MultiTaskModel:
    """The study's model with fresh weights, the same ones for the same `study.seed`.

    Args:
        inputs: how many numbers a row has, or what stands where in it.

    Raises:
        DataError: when a pretrained encoder is not there, or the rows have nothing that the encoder reads.
        RunError: when the user's own encoder cannot be imported or built.
        StudyError: when the sharing scheme asks for layers that the encoder does not have.
    """
    encoders = EncoderFactory(lambda: build_encoder(study, inputs), inputs, study.model.encoder.kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        sharing = build_sharing(study.model.sharing, list(study.tasks), encoders)
        return MultiTaskModel(sharing, build_heads(sharing.outputs, targets, 1 + layout_of(inputs).words))
