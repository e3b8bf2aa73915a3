"""A multi-layer perceptron over a row's numeric features."""

from __future__ import annotations

from torch import Tensor, nn

from polyshot.study.model import MLP

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_NORMALISATIONS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLPEncoder(nn.Module):
    """`depth` blocks of linear → normalisation → activation → dropout; [B, inputs] → [B, width]."""

    def __init__(self, inputs: int, settings: MLP):
        super().__init__()
        self.outputs = settings.width
        self.blocks = nn.Sequential(
            *(_block(inputs if layer == 0 else settings.width, settings) for layer in range(settings.depth))
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.blocks(features)


def _block(inputs: int, settings: MLP) -> nn.Sequential:
    block = nn.Sequential(nn.Linear(inputs, settings.width))
    if settings.normalisation != "none":
        block.append(_NORMALISATIONS[settings.normalisation](settings.width))
    block.append(_ACTIVATIONS[settings.activation]())
    if settings.dropout:
        block.append(nn.Dropout(settings.dropout))
    return block
