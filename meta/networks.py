"""The networks that are meta-learnt: a body that makes features of inputs, and a linear head that is fitted to a task.

Built from a study for rows of numbers (its encoder) or for images (the four convolutions of the few-shot papers).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polyshot.errors import Problem, StudyError
from polyshot.models.encoders import build_encoder
from polyshot.study import Study
from polyshot.study.meta import CNN4


class FewShotNetwork(nn.Module):
    """[N, ...] → [N, outputs]: `head(body(x))`."""

    def __init__(self, body: nn.Module, head: nn.Linear):
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


def cnn4(
    shape: tuple[int, int, int], width: int = 64, layers: int = 4, downsample: str = "stride"
) -> tuple[nn.Sequential, int]:
    """The convolutional body of Vinyals et al. (2016), and the number of its features.

    Each block is a 3×3 convolution, batch normalisation and ReLU that halves the image: by its stride, after which the
    last maps are averaged (Finn et al. 2017, for Omniglot), or by max-pooling.

    Args:
        shape: of an image: channels, height, width.
        downsample: "stride" or "max_pool".
    """
    channels, height, extent = shape
    blocks = nn.Sequential()
    for _ in range(layers):
        stride = 2 if downsample == "stride" else 1
        convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # it has one
        block = nn.Sequential(convolution, nn.BatchNorm2d(width, track_running_stats=False), nn.ReLU())
        if downsample == "max_pool":
            block.append(nn.MaxPool2d(2))
            height, extent = height // 2, extent // 2
        blocks.append(block)
        channels = width
    if downsample == "stride":
        blocks.append(nn.AdaptiveAvgPool2d(1))
        height = extent = 1
    blocks.append(nn.Flatten())
    return blocks, width * height * extent


def build_network(study: Study, shape: tuple[int, ...], outputs: int) -> FewShotNetwork:
    """The study's network with fresh weights, the same ones for the same `study.seed`.

    Args:
        shape: of one input: (features,) or (channels, height, width).

    Raises:
        StudyError: when the network does not fit the inputs.
        RunError: when the user's own encoder cannot be imported or built.
    """
    settings = study.meta.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        if isinstance(settings, CNN4):
            if len(shape) != 3 or min(shape[1:]) < 2**settings.layers:
                message = f"{settings.layers} halvings need images of {2**settings.layers} pixels or more, got inputs "
                mend = "use kind 'encoder' for rows of numbers, or fewer layers"
                raise StudyError([Problem("meta.network", f"{message}of shape {list(shape)}; {mend}")])
            body, features = cnn4(shape, settings.width, settings.layers, settings.downsample)
            return FewShotNetwork(body, _small_head(features, outputs))
        encoder = study.model.encoder
        if getattr(encoder, "dropout", 0):
            message = "adaptation to a few rows has no dropout; set it to 0"
            raise StudyError([Problem("model.encoder.dropout", message)])
        inputs = math.prod(shape)
        made = build_encoder(study, inputs)
        flat = nn.Sequential(nn.Flatten(), made) if len(shape) > 1 else made
        return FewShotNetwork(flat, nn.Linear(made.outputs, outputs))  # type: ignore[arg-type]


def _small_head(features: int, outputs: int) -> nn.Linear:
    head = nn.Linear(features, outputs)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return head
