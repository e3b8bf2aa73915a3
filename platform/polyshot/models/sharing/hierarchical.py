"""Hierarchical sharing: tasks are supervised at different depths of one encoder.

Søgaard & Goldberg, "Deep Multi-Task Learning with Low Level Tasks Supervised at Lower Layers" (ACL 2016):
ŷ_t = head_t(f_{d_t} ∘ … ∘ f_1(x)), where d_t is the depth that the study gives the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.errors import Problem, StudyError
from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.encoders.transformer import TransformerEncoder
from polyshot.models.mixture import Mixture
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.stacking import Rows


class HierarchicalSharing(SharingScheme):
    """[B, F] → the layers' outputs, of which each task reads one. Layers below which no task stands are left out."""

    _choice: Tensor

    def __init__(self, encoders: EncoderFactory, depths: Sequence[int | None]):
        """`depths` [T] count from 1; None is the last layer.

        Raises:
            StudyError: for a depth that the encoder does not have, or depths with layers of different widths.
        """
        super().__init__()
        self.encoder: TransformerEncoder | None = None  # one that gives the vectors of several layers itself
        self.layers = nn.ModuleList()
        if encoders.reads_media:
            self._read_within(encoders.one(), depths)
            return
        widths = encoders.widths("hierarchical")
        self._depths = [depth or len(widths) for depth in depths]
        deepest = max(self._depths)
        if deepest > len(widths):
            message = f"layer {deepest} was asked for and the encoder has {len(widths)}; use 1 to {len(widths)}"
            raise StudyError([Problem("model.sharing.depths", message)])
        used = sorted(set(self._depths))
        if len({widths[depth - 1] for depth in used}) > 1:
            found = ", ".join(f"{widths[depth - 1]} at layer {depth}" for depth in used)
            message = f"tasks must be supervised at layers of one width and these differ ({found}); choose others"
            raise StudyError([Problem("model.sharing.depths", message)])
        self.outputs = widths[used[0] - 1]
        self._used = used
        self.layers = nn.ModuleList(encoders.layers("hierarchical")[:deepest])
        self._register_choice()

    def _read_within(self, encoder: nn.Module, depths: Sequence[int | None]) -> None:
        if not isinstance(encoder, TransformerEncoder):
            message = "'hierarchical' works on layers, and the encoder gives the vectors of its last one only"
            raise StudyError([Problem("model.sharing.kind", f"{message}; choose hard, soft or grouped")])
        self._depths = [depth or encoder.depth for depth in depths]
        if max(self._depths) > encoder.depth:
            message = f"layer {max(self._depths)} was asked for and the encoder has {encoder.depth}; lower it"
            raise StudyError([Problem("model.sharing.depths", message)])
        self._used = sorted(set(self._depths))
        encoder.read_at(self._used)
        self.encoder = encoder
        self.outputs = encoder.outputs
        self._register_choice()

    def _register_choice(self) -> None:
        places = torch.tensor([self._used.index(depth) for depth in self._depths])
        choice = F.one_hot(places, len(self._used)).T[:, None]
        self.register_buffer("_choice", choice.float(), persistent=False)  # [S, 1, T]

    def forward(self, features: Tensor) -> Tensor | Mixture:
        if self.encoder is not None:
            return self._mixture(list(self.encoder(features).unflatten(1, (len(self._used), -1)).unbind(1)))
        read = []
        for depth, layer in enumerate(self.layers, start=1):
            features = layer(features)
            if depth in self._used:
                read.append(features)
        return self._mixture(read)

    def _mixture(self, read: Sequence[Tensor]) -> Tensor | Mixture:
        if len(read) == 1:
            return read[0]
        return Mixture(torch.stack(tuple(read)), self._choice.expand(-1, len(read[0]), -1))

    def reads(self, task: int) -> int:
        return self._depths[task]

    def own(self, task: int) -> Iterator[Rows]:
        """The layers that are above all other tasks'."""
        others = [depth for other, depth in enumerate(self._depths) if other != task]
        layers = list(self.layers) if self.encoder is None else self.encoder.layers[1:]
        for layer in layers[max(others, default=0) :]:
            for parameter in layer.parameters():
                yield Rows(parameter, slice(None))
