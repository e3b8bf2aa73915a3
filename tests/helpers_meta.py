"""Small networks and episodes, made by hand, for the tests of meta-learning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polyshot.meta.engines.flat import FlatLayout
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners import Learner, build_learner
from polyshot.meta.networks import FewShotNetwork, cnn4
from polyshot.meta.objectives import CrossEntropy, Objective, SquaredError
from polyshot.study.meta import Meta

torch.set_num_threads(1)


def mlp(normalisation: str = "none", outputs: int = 1, inputs: int = 2) -> FewShotNetwork:
    """Two hidden layers of six units."""
    torch.manual_seed(0)
    made = {"none": nn.Identity, "batch": lambda: nn.BatchNorm1d(6), "layer": lambda: nn.LayerNorm(6)}[normalisation]
    body = nn.Sequential(nn.Linear(inputs, 6), made(), nn.ReLU(), nn.Linear(6, 6), made(), nn.Tanh())
    return FewShotNetwork(body, nn.Linear(6, outputs)).double()


def convolutions(downsample: str = "stride", ways: int = 3, size: int = 8, width: int = 4) -> FewShotNetwork:
    """Two blocks of `width` channels on images of `size`."""
    torch.manual_seed(0)
    body, features = cnn4((1, size, size), width=width, layers=2, downsample=downsample)
    network = FewShotNetwork(body, nn.Linear(features, ways)).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # the affine part, too, must have something to be wrong about
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network


def waves(tasks: int = 3, support: int = 5, query: int = 4, inputs: int = 2) -> Episodes:
    """Regression tasks of different slopes and bends."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(tasks, support + query, inputs, generator=generator, dtype=torch.float64)
    slopes = torch.randn(tasks, 1, inputs, generator=generator, dtype=torch.float64)
    return _split(rows, torch.sin((rows * slopes).sum(2)) * 2, support)


def pictures(tasks: int = 3, ways: int = 3, shots: int = 2, size: int = 8) -> Episodes:
    """Classification of noisy pictures; every class has `shots` rows of support and as many of query."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.randn(tasks, ways, 1, size, size, generator=generator, dtype=torch.float64)
    labels = torch.arange(ways).repeat(2 * shots).expand(tasks, -1)
    rows = torch.stack([one[own] for one, own in zip(classes, labels, strict=True)])
    return _split(rows + torch.randn(rows.shape, generator=generator, dtype=rows.dtype), labels, ways * shots)


def _split(rows: Tensor, labels: Tensor, support: int) -> Episodes:
    return Episodes(rows[:, :support], labels[:, :support], rows[:, support:], labels[:, support:])


def learner(kind: str, network: FewShotNetwork, objective: Objective | None = None, **options: Any) -> Learner:
    """A learner by its name in a study; those that take steps take two of 0.1 unless told otherwise."""
    settings = {"rate": 0.1, "steps": 2} if kind not in ("protonet", "ridge") else {}
    section = Meta.model_validate({"learner": {"kind": kind} | settings | options}).learner
    if objective is None:
        objective = SquaredError() if network.head.out_features == 1 else CrossEntropy()
    return build_learner(section, network, objective)


def start(made: Learner) -> tuple[FlatLayout, Tensor]:
    """The layout of the learner's meta-weights, and weights near the initial ones where none is special."""
    weights = made.weights()
    layout = FlatLayout.of(weights)
    flat = layout.join(weights)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(3), dtype=flat.dtype)
    return layout, flat + 0.02 * noise
