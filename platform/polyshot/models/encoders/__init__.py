"""Encoders turn a batch of inputs [B, F] into representations [B, H].

An encoder is a module with an attribute `outputs` (its H). One that is a chain of layers says so by an attribute
`blocks`, and the schemes that share layer by layer work with it too. One that gives a vector for each word besides
that of the row has `places`, their number P, and H is that of all of them. `build_encoder` is the only place that maps
a study's `model.encoder` to a class; a new encoder is one file here, one section in `study/model.py` and one line
below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from polyshot.data.inputs import InputLayout, layout_of
from polyshot.errors import RunError
from polyshot.models.encoders.images import ImageEncoder
from polyshot.models.encoders.mixed import MixedEncoder
from polyshot.models.encoders.mlp import MLPEncoder
from polyshot.models.encoders.transformer import TransformerEncoder
from polyshot.plugins import load_object
from polyshot.study import Study
from polyshot.study.model import MLP, ConvNet, Mixed, TorchvisionModel, Transformer
from polyshot.study.model import Encoder as EncoderSettings


class Encoder(Protocol):
    """What a sharing scheme asks of an encoder, the user's own included."""

    outputs: int

    def __call__(self, features: Tensor) -> Tensor: ...


class LayeredEncoder(Encoder, Protocol):
    """What cross_stitch, hierarchical, attention and ple ask of it.

    The blocks, each [B, in] → [B, out], applied one after another are the encoder, while it trains as well.
    """

    blocks: nn.Sequential | nn.ModuleList


def build_encoder(study: Study, inputs: int | InputLayout) -> nn.Module:
    """A fresh encoder of the study's for rows of `inputs`; raises what `make_encoder` raises."""
    return make_encoder(study.model.encoder, inputs, study.folder)


def make_encoder(settings: EncoderSettings, inputs: int | InputLayout, folder: Path = Path()) -> nn.Module:
    """A fresh encoder of rows of numbers, so many, or as a layout says; one of the user's may stand in `folder`.

    Raises:
        DataError: when a pretrained encoder is not there, or the rows have nothing that the encoder reads.
        RunError: when the user's own encoder cannot be imported, built, or says no `outputs`.
    """
    layout = layout_of(inputs)
    if isinstance(settings, MLP):
        return MLPEncoder(layout.width, settings)
    if isinstance(settings, Transformer):
        return TransformerEncoder(layout, settings, folder)
    if isinstance(settings, ConvNet | TorchvisionModel):
        return ImageEncoder(layout, settings, folder)
    if isinstance(settings, Mixed):
        return MixedEncoder(layout, settings, folder)
    make = load_object(settings.kind, folder, "model.encoder.kind")
    try:
        encoder = make(layout.width if layout.is_numbers else layout, **settings.options)
    except TypeError as error:
        raise RunError(
            f"model.encoder.kind: '{settings.kind}' does not take the number of inputs and model.encoder.options "
            f"({error})"
        ) from error
    if not isinstance(encoder, nn.Module) or not isinstance(getattr(encoder, "outputs", None), int):
        raise RunError(
            f"model.encoder.kind: '{settings.kind}' must return a torch.nn.Module with an integer attribute 'outputs'"
        )
    return encoder
