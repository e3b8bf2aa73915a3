"""Selective transfer: only some of the source's features go to the new heads, from its last layer or from hidden ones.

Either their first principal components on all training rows, which needs no labels, or those with the most mutual
information with the labels there are. The encoder stays as it is; the selection is taken into the heads afterwards.
Features of hidden layers serve targets that are unlike the source (Evci et al., "Head2Toe", ICML 2022); a single layer
is chosen by LogME.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from polyshot.errors import RunError
from polyshot.models.heads import HeadLayout, StackedHeads
from polyshot.models.sharing.hard import HardSharing
from polyshot.study import Study
from polyshot.study.transfer import SelectiveTransfer
from polyshot.transfer.hidden_layers import HiddenLayers, depth_of
from polyshot.transfer.model import TransferModel, Wrapped
from polyshot.transfer.problem import Problem
from polyshot.transfer.selection import (
    Array,
    Projection,
    by_mutual_information,
    most_informative,
    principal_components,
)
from polyshot.transfer.start import Start, on_source, plainly_weighed, require_rows
from polyshot.transfer.transferability.logme import logme


class Selected(Wrapped):
    """[B, F] → [B, K]."""

    centre: Tensor  # [H]
    matrix: Tensor  # [H, K]

    def __init__(self, encoder: nn.Module, projection: Projection):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.outputs = projection.matrix.shape[1]
        self.register_buffer("centre", torch.as_tensor(projection.centre, dtype=torch.float32))
        self.register_buffer("matrix", torch.as_tensor(projection.matrix, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        return (self.encoder(features) - self.centre) @ self.matrix

    def unwrap(self, weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        weight = weight @ self.matrix.T
        return self.encoder, weight, bias - weight @ self.centre

    def train(self, mode: bool = True) -> Selected:
        super().train(mode)
        self.encoder.eval()
        return self


def prepare(settings: SelectiveTransfer, problem: Problem) -> Start:
    require_rows(problem, settings.kind)
    start = on_source(problem, settings)
    assert isinstance(start.model, TransferModel)
    sharing, saved = start.model.sharing, start.saved
    assert isinstance(sharing, HardSharing)
    encoder = sharing.encoder.eval()
    if (layers := _layers(settings, problem)) is not None:
        saved, encoder = _reading(layers, saved, problem)
    with torch.no_grad():
        features = encoder(problem.shared_rows)
    widths = encoder.widths if isinstance(encoder, HiddenLayers) else [features.shape[1]]
    projection = _projection(settings, features.numpy(), widths, problem)
    sharing.encoder = Selected(encoder, projection)
    sharing.outputs = sharing.encoder.outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.study.seed)
        heads = StackedHeads(sharing.outputs, HeadLayout.of(problem.targets))
    return Start(plainly_weighed(saved), start.prepared, saved, TransferModel(sharing, heads))


def _layers(settings: SelectiveTransfer, problem: Problem) -> list[int] | None:
    """The numbers of the layers, or None for what the encoder gives.

    Raises:
        RunError: for a layer that the encoder does not have.
    """
    depth = depth_of(problem.source.encoder)
    if not isinstance(settings.layers, str):
        if max(settings.layers) > depth:
            raise RunError(
                f"transfer.methods: '{settings.kind}' names layer {max(settings.layers)}, and the encoder of "
                f"'{problem.source.name}' has {depth}; lower it"
            )
        return sorted(set(settings.layers))
    if settings.layers == "last" or depth < 2:
        return None
    everything = list(range(1, depth + 1))
    if settings.layers == "all":
        return everything
    _, encoder = _reading(everything, problem.study, problem)
    with torch.no_grad():
        of_layers = encoder(problem.once.features).split(encoder.widths, 1)
    scores = [_evidence(features.numpy(), problem) for features in of_layers]
    return [everything[int(np.argmax(scores))]]


def _reading(layers: list[int], study: Study, problem: Problem) -> tuple[Study, HiddenLayers]:
    """The source's encoder as it is read at some layers, and the study with it."""
    section = problem.source.encoder_section
    encoder = HiddenLayers(problem.shared.inputs, section, layers)
    encoder.load(problem.source.encoder.state_dict())
    options = {"encoder": section, "layers": layers}
    kind = f"{HiddenLayers.__module__}:{HiddenLayers.__qualname__}"
    return study.with_values({"model.encoder": {"kind": kind, "options": options}}), encoder


def _evidence(features: Array, problem: Problem) -> float:
    """LogME of the labelled rows' features [N, H], the mean over tasks."""
    found = []
    for values, are_classes in _tasks(problem):
        known = ~np.isnan(values)
        if len(np.unique(values[known])) > 1:
            found.append(logme(features[known], values[known], are_classes))
    return float(np.mean(found))


def _tasks(problem: Problem) -> list[tuple[Array, bool]]:
    """Of each column of labels those of the labelled rows [N], NaN where missing, and whether they are classes."""
    rows = problem.once
    labels = rows.targets.where(rows.mask, torch.nan).double().numpy()
    columns = zip(problem.targets, problem.shared.labels.columns, strict=True)
    return [(labels[:, place], target.classes is not None) for target, own in columns for place in _places(own)]


def _places(columns: slice) -> range:
    return range(columns.start, columns.stop)


def _projection(settings: SelectiveTransfer, features: Array, widths: list[int], problem: Problem) -> Projection:
    """
    Args:
        features: [N, Σ H], the encoder's for all training rows.
        widths: H of each of its layers.
    """
    if settings.by == "pca":
        return principal_components(features, settings.features, widths)
    ranking = by_mutual_information(features[problem.labelled], _tasks(problem), settings.features, problem.study.seed)
    return most_informative(features, ranking)
