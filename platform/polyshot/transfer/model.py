"""The model that a method trains: a multi-task model with parts that stay as they are, rates by layer, and extra terms.

Methods compose it; the training loop trains it like any other; `plain` gives back what is left when training is over, a
model that a study describes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout
from polyshot.data.targets import Target
from polyshot.models.encoders.media import MediaEncoder
from polyshot.models.heads import Heads
from polyshot.models.multitask import MultiTaskModel, build_model
from polyshot.models.sharing import SharingScheme
from polyshot.models.sharing.hard import HardSharing
from polyshot.models.stacking import Rows
from polyshot.study import Study
from polyshot.transfer.source import Source


class Term(nn.Module, ABC):
    """A term of the loss that a method adds; its parameters, if any, are learnt with the model's."""

    @abstractmethod
    def forward(self, model: TransferModel) -> Tensor:
        """The term [] at the model's present weights."""

    def begin_epoch(self, number: int) -> None:
        """Called before each epoch, from 1."""


@dataclass(frozen=True)
class Training:
    """How the encoder is trained.

    Attributes:
        layers: of an epoch (from 1), how many of its layers, counted from the top; None leaves them as they were made.
        layer_decay: learning rate of a layer relative to the one above it.
    """

    layers: Callable[[int], int | None] = lambda _: None
    layer_decay: float = 1.0

    @property
    def is_partial(self) -> bool:
        return self.layers(1) is not None


ALL = Training()
NONE = Training(lambda _: 0)


class TransferModel(MultiTaskModel):
    """[B, F] → [B, O], as any multi-task model. What is said of layers needs hard sharing."""

    def __init__(self, sharing: SharingScheme, heads: Heads, training: Training = ALL, terms: Sequence[Term] = ()):
        super().__init__(sharing, heads)
        self.terms = nn.ModuleList(terms)
        self._training = training
        self._fixed: list[nn.Module] = []
        self.begin_epoch(1)

    @property
    def encoder(self) -> nn.Module:
        assert isinstance(self.sharing, HardSharing)
        return self.sharing.encoder

    def penalty(self) -> Tensor:
        return torch.stack([self.sharing.penalty().to(self._device), *(term(self) for term in self.terms)]).sum()

    def begin_epoch(self, number: int) -> None:
        trained = self._training.layers(number)
        if trained is not None:
            layers = layers_of(self.encoder)
            self._fixed = layers[: max(0, len(layers) - trained)] if trained else [self.encoder]
            self.encoder.requires_grad_(trained > 0)
            for layer in self._fixed:
                layer.requires_grad_(False)
        for term in self.terms:
            term.begin_epoch(number)  # type: ignore[operator]

    def train(self, mode: bool = True) -> TransferModel:
        """What is not trained behaves as it does afterwards: no dropout, and normalisation as it was learnt."""
        super().train(mode)
        for layer in self._fixed:
            layer.eval()
        return self

    def learning_rates(self) -> Sequence[tuple[Rows, float]]:
        rates = super().learning_rates()
        if self._training.layer_decay == 1:
            return rates
        layers = layers_of(self.encoder)
        return [
            *rates,
            *(
                (Rows(parameter, slice(None)), self._training.layer_decay ** (len(layers) - place))
                for place, layer in enumerate(layers)
                for parameter in layer.parameters()
            ),
        ]

    @property
    def _device(self) -> torch.device:
        return self.heads.linear.weight.device


def layers_of(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's layers that have something to learn, from the bottom; one that does not say them is one layer."""
    if isinstance(encoder, MediaEncoder):
        return encoder.layers
    blocks = getattr(encoder, "blocks", None)
    layers = list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else [encoder]
    return [layer for layer in layers if any(True for _ in layer.parameters())]


class Wrapped(nn.Module, ABC):
    """An encoder with something round it that is taken into the encoder or the heads when training is over."""

    outputs: int

    @abstractmethod
    def unwrap(self, weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        """The encoder, and the heads [O, outputs] and [O] as heads on its features, [O, H] and [O]."""


# --- making and ending -----------------------------------------------------------------------------------------------


def with_source_encoder(study: Study, source: Source) -> Study:
    """The study with the source's encoder in place of its own."""
    return study.with_values({"model.encoder": source.encoder_section, "model.sharing": {"kind": "hard"}})


def from_source(study: Study, source: Source, inputs: InputLayout, targets: Sequence[Target]) -> MultiTaskModel:
    """A model of `study` (see `with_source_encoder`) with the source's encoder, and its heads for tasks that it has.

    Args:
        inputs: how the source reads the target's rows.
    """
    model = build_model(study, inputs, targets)
    assert isinstance(model.sharing, HardSharing)
    model.sharing.encoder.load_state_dict(source.encoder.state_dict())
    take_heads(model.heads, targets, source, shared_tasks(targets, source))
    return model


def shared_tasks(targets: Sequence[Target], source: Source) -> Iterator[tuple[int, int]]:
    """Places of tasks, in `targets` and in the source, that are the same: in name, kind, classes and labels."""
    theirs = {target.task: place for place, target in enumerate(source.saved.targets)}
    for place, target in enumerate(targets):
        other = theirs.get(target.task)
        if other is None:
            continue
        found = source.saved.targets[other]
        if (target.kind, target.classes, target.labels) == (found.kind, found.classes, found.labels):
            yield place, other


@torch.no_grad()
def take_heads(heads: Heads, targets: Sequence[Target], source: Source, pairs: Iterable[tuple[int, int]]) -> None:
    """Give tasks the source's heads; of regression tasks, so that predictions in own units stay.

    Args:
        pairs: places of the same task in `targets` and in the source. Those whose heads read something else than what
            is transferred are left fresh.
    """
    theirs = source.saved.model.heads
    for place, other in pairs:
        if other not in source.readers:
            continue
        mine, old = targets[place], source.saved.targets[other]
        rows, from_rows = heads.weights.columns[place], theirs.weights.columns[other]
        weight, bias = theirs.linear.weight[from_rows], theirs.linear.bias[from_rows]
        heads.linear.weight[rows] = weight * (old.scale / mine.scale)
        heads.linear.bias[rows] = (bias * old.scale + old.mean - mine.mean) / mine.scale


@torch.no_grad()
def plain(study: Study, targets: Sequence[Target], inputs: InputLayout, trained: TransferModel) -> MultiTaskModel:
    """The trained model as one that `study` describes: without terms, maps and the heads of other tasks.

    Args:
        targets: of the study's tasks, which are the first ones of the trained model.
    """
    sharing, heads = trained.sharing, trained.heads
    weight: Tensor = heads.linear.weight
    bias: Tensor = heads.linear.bias
    model = build_model(study, inputs, targets)
    if isinstance(sharing, HardSharing) and isinstance(sharing.encoder, Wrapped):
        encoder, weight, bias = sharing.encoder.unwrap(weight, bias)
        assert isinstance(model.sharing, HardSharing)
        model.sharing.encoder.load_state_dict(encoder.state_dict())
    else:
        model.sharing.load_state_dict(sharing.state_dict())
    for mine, theirs in zip(model.heads.weights.columns, heads.weights.columns, strict=False):
        model.heads.linear.weight[mine] = weight[theirs]
        model.heads.linear.bias[mine] = bias[theirs]
    return model.eval()
