"""Selective transfer: only some of the source's features go to the new heads.

Either their first principal components on all training rows, which needs no labels, or those with the most mutual
information with the labels there are. The encoder stays as it is; the selection is taken into the heads afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyshot.models.heads import HeadLayout, StackedHeads
from polyshot.models.sharing.hard import HardSharing
from polyshot.study.transfer import SelectiveTransfer
from polyshot.transfer.model import TransferModel, Wrapped
from polyshot.transfer.problem import Problem
from polyshot.transfer.selection import Projection, by_mutual_information, most_informative, principal_components
from polyshot.transfer.start import Start, on_source, plainly_weighed, require_rows


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
    encoder = start.model.encoder.eval()
    with torch.no_grad():
        features = encoder(problem.shared_rows)
    projection = _projection(settings, features, problem)
    sharing = start.model.sharing
    assert isinstance(sharing, HardSharing)
    sharing.encoder = Selected(encoder, projection)
    sharing.outputs = sharing.encoder.outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.study.seed)
        heads = StackedHeads(sharing.outputs, HeadLayout.of(problem.targets))
    return Start(plainly_weighed(start.study), start.prepared, start.saved, TransferModel(sharing, heads))


def _places(columns: slice) -> range:
    return range(columns.start, columns.stop)


def _projection(settings: SelectiveTransfer, features: Tensor, problem: Problem) -> Projection:
    """
    Args:
        features: [N, H], the encoder's for all training rows.
    """
    if settings.by == "pca":
        return principal_components(features.numpy(), settings.features)
    rows = problem.once
    labels = rows.targets.where(rows.mask, torch.nan).double().numpy()
    columns = zip(problem.targets, problem.shared.labels.columns, strict=True)
    tasks = [(labels[:, place], target.classes is not None) for target, own in columns for place in _places(own)]
    of_labelled = features[torch.from_numpy(problem.labelled)].numpy()
    ranking = by_mutual_information(of_labelled, tasks, settings.features, problem.study.seed)
    return most_informative(features.numpy(), ranking)
