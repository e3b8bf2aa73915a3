"""Nearest neighbours in the source's feature space: nothing is trained, the labelled rows are the model.

They are kept in an encoder of its own, whose outputs the heads pass on, so that the model is saved and predicts like
any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout
from polyshot.data.targets import Target
from polyshot.models.encoders import make_encoder
from polyshot.models.multitask import build_model
from polyshot.study.model import Model
from polyshot.study.transfer import NearestNeighbours
from polyshot.transfer.model import with_source_encoder
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, plainly_weighed, require_rows, transferring

_ROWS_AT_ONCE = 1024


class KNNEncoder(nn.Module):
    """[B, F] → [B, O]: for each task what its k nearest labelled rows say.

    The mean label of a regression task; the log-odds of a positive class or label, or the log-probability of each
    class, from the neighbours' votes and one more that is shared out among all classes.
    """

    memory: Tensor  # [N, H], features of the labelled rows
    labels: Tensor  # [N, L]
    known: Tensor  # [N, L]

    def __init__(
        self,
        inputs: int | InputLayout,
        encoder: dict[str, Any],
        rows: int,
        neighbours: int,
        tasks: list[tuple[str, int, int]],
    ):
        """`tasks`: of each column of labels the task's kind, and the first and the end of its outputs."""
        super().__init__()
        self.encoder = make_encoder(Model.model_validate({"encoder": encoder}).encoder, inputs)
        self.outputs = max(end for _, _, end in tasks)
        self._tasks = tasks
        self._neighbours = neighbours
        self.register_buffer("memory", torch.zeros(rows, int(self.encoder.outputs)))  # type: ignore[arg-type]
        self.register_buffer("labels", torch.zeros(rows, len(tasks)))
        self.register_buffer("known", torch.zeros(rows, len(tasks), dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self._answers(self.encoder(rows)) for rows in features.split(_ROWS_AT_ONCE)])

    def _answers(self, features: Tensor) -> Tensor:
        """[B, H] → [B, O]."""
        distances = torch.cdist(features, self.memory)
        answers = features.new_zeros(len(features), self.outputs)
        for column, (kind, first, end) in enumerate(self._tasks):
            own = self.known[:, column]
            if not own.any():  # a label that no row has: as likely as not
                continue
            nearest = distances[:, own].topk(min(self._neighbours, int(own.sum())), largest=False).indices
            labels = self.labels[own, column][nearest]  # [B, k]
            answers[:, first:end] = _votes(kind, labels, end - first)
        return answers


def _votes(kind: str, labels: Tensor, outputs: int) -> Tensor:
    """[B, k] → [B, outputs]."""
    if kind == "regression":
        return labels.mean(1, keepdim=True)
    classes = max(outputs, 2)
    votes = (labels[..., None] == torch.arange(classes, device=labels.device)).float().sum(1) + 1 / classes
    logs = (votes / votes.sum(1, keepdim=True)).log()
    return logs if outputs > 1 else logs[:, 1:] - logs[:, :1]


def _parts(target: Target, own: slice) -> list[tuple[int, int]]:
    """The outputs of each column of a task's labels."""
    if target.kind == "multilabel":
        return [(place, place + 1) for place in range(own.start, own.stop)]
    return [(own.start, own.stop)]


def prepare(settings: NearestNeighbours, problem: Problem) -> Start:
    require_rows(problem, settings.kind)
    source, targets, rows = problem.source, problem.targets, problem.once
    inputs = problem.shared.inputs
    study = with_source_encoder(problem.study, source)
    columns = build_model(study, inputs, targets).layout.columns
    options = {
        "encoder": source.encoder_section,
        "rows": len(rows),
        "neighbours": settings.neighbours,
        "tasks": [
            [target.kind, *part] for target, own in zip(targets, columns, strict=True) for part in _parts(target, own)
        ],
    }
    kind = f"{KNNEncoder.__module__}:{KNNEncoder.__qualname__}"
    study = plainly_weighed(study.with_values({"model.encoder": {"kind": kind, "options": options}}))
    model = transferring(build_model(study, inputs, targets))
    encoder = model.encoder
    assert isinstance(encoder, KNNEncoder)
    encoder.encoder.load_state_dict(source.encoder.state_dict())
    with torch.no_grad():
        encoder.memory.copy_(encoder.encoder.eval()(rows.features))
        encoder.labels.copy_(rows.targets)
        encoder.known.copy_(rows.mask)
        nn.init.eye_(model.heads.linear.weight)
        nn.init.zeros_(model.heads.linear.bias)
    model.requires_grad_(False)
    return Start(study, problem.shared, study, model)
