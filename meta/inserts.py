"""Small modules inside a network's layers that are adapted to a task in place of the layers: LoRA and adapters.

A layer with an insert keeps its own weights' names, so that what is known by them (an encoder to start from) still
fits. The inserts change nothing at first: their second factor is zero.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.models.encoders.mlp import MLPEncoder
from polyshot.study.model import MLP

Kind = Literal["lora", "adapters"]
FACTORS = ("down", "up")  # the names of an insert's parameters within its layer


class LinearWithInsert(nn.Linear):
    """`lora`: y = W x + b + U D x (Hu et al., ICLR 2022); `adapters`: y + U relu(D y) (Houlsby et al., ICML 2019)."""

    def __init__(self, layer: nn.Linear, kind: Kind, rank: int):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.kind = kind
        inputs = layer.in_features if kind == "lora" else layer.out_features
        self.down = _factor(rank, inputs)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, rows: Tensor) -> Tensor:
        outputs = super().forward(rows)
        if self.kind == "lora":
            return outputs + F.linear(F.linear(rows, self.down), self.up)
        return outputs + F.linear(F.relu(F.linear(outputs, self.down)), self.up)


class ConvolutionWithInsert(nn.Conv2d):
    """The same for a convolution: D has its kernel's shape for LoRA, the rest of the factors act on single pixels."""

    def __init__(self, layer: nn.Conv2d, kind: Kind, rank: int):
        places: dict[str, Any] = {
            name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        super().__init__(layer.in_channels, layer.out_channels, **places, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.kind = kind
        down = layer.weight.shape[1:] if kind == "lora" else (layer.out_channels, 1, 1)
        self.down = _factor(rank, *down)
        self.up = nn.Parameter(torch.zeros(layer.out_channels, rank, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        outputs = super().forward(images)
        if self.kind == "lora":
            inner = F.conv2d(images, self.down, None, self.stride, self.padding, self.dilation)
            return outputs + F.conv2d(inner, self.up)
        return outputs + F.conv2d(F.relu(F.conv2d(outputs, self.down)), self.up)


def with_inserts(body: nn.Module, kind: Kind, rank: int) -> nn.Module:
    """A copy of `body` with an insert in each of its linear layers and convolutions, of the same type of numbers."""
    made = copy.deepcopy(body)
    for parent in list(made.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                setattr(parent, name, LinearWithInsert(layer, kind, rank).to(layer.weight))
            elif type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
                setattr(parent, name, ConvolutionWithInsert(layer, kind, rank).to(layer.weight))
    return made


def mlp_with_adapters(inputs: int, rank: int, **settings: Any) -> nn.Module:
    """The encoder of models that were adapted by adapters: an MLP of these settings with them in it."""
    return with_inserts(MLPEncoder(inputs, MLP(**settings)), "adapters", rank)


def is_insert(name: str) -> bool:
    """Whether a parameter of this name is an insert's."""
    return name.rpartition(".")[2] in FACTORS


def merged(body: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a body with LoRA in its linear layers as those of the plain body that computes the same."""
    plain = {name: value for name, value in body.items() if not is_insert(name)}
    for name, down in body.items():
        layer, _, own = name.rpartition(".")
        if own == "down":
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + body[f"{layer}.up"] @ down
    return plain


def _factor(rank: int, *inputs: int) -> nn.Parameter:
    """[rank, ...] at the scale of a fresh layer's weights."""
    factor = torch.empty(rank, *inputs)
    nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
    return nn.Parameter(factor)
