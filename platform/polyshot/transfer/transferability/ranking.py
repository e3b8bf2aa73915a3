"""Several sources for one target, ranked by what their features and predictions tell of its labels.

For tasks that label words, what is measured are words: their vectors, and what the source says of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from polyshot.data.prepare import Prepared
from polyshot.training.metrics import predictions
from polyshot.transfer.model import from_source, with_source_encoder
from polyshot.transfer.problem import TargetData
from polyshot.transfer.source import Source
from polyshot.transfer.transferability.h_score import h_score
from polyshot.transfer.transferability.leep import leep
from polyshot.transfer.transferability.logme import logme

Labels = NDArray[np.float64]
Leeps = dict[str, float]  # by task
_FEATURES = ("logme", "h_score")  # what is measured on features; the others are LEEP, by the source's task


def ranking(target: TargetData, sources: Sequence[Source]) -> pd.DataFrame:
    """One row per source and task, for each task the source with the highest LogME first.

    Columns: task, source, columns (how many it shares with the target's table), logme, h_score, leep and leep_task, the
    source's task whose predictions tell most. H-score and LEEP are of classes only; LEEP needs a source with classes,
    and for labels of words one that labels words, by the representation that is transferred.

    Raises:
        DataError: when a source shares no column with the target.
    """
    rows = [row for source in sources for row in _rows(target, source)]
    table = pd.DataFrame(rows)
    places = {task: place for place, task in enumerate(target.study.tasks)}
    order = np.lexsort([-table["logme"], table["task"].map(places)])
    return table.iloc[order].reset_index(drop=True)


def _rows(target: TargetData, source: Source) -> list[dict[str, Any]]:
    prepared = target.read_by(source)
    train = prepared.train
    with torch.no_grad():
        vectors = _vectors(target, source, prepared)
        outputs = source.saved.model.eval()(target.read_by(source, its_words=True).train.features).numpy()
    rows = []
    for own, columns in zip(prepared.targets, prepared.labels.columns, strict=True):
        if own.kind == "tokens":
            known = train.mask[:, columns]
            words, labels = vectors[:, 1 : 1 + own.places][known], train.targets[:, columns][known].double().numpy()
            measured = [_measured(words.numpy(), labels, True, _leeps_of_words(source, words, labels))]
        else:
            measured = []
            for place in range(columns.start, columns.stop):
                known = train.mask[:, place]
                labels = train.targets[known, place].double().numpy()
                if len(np.unique(labels)) > 1:
                    leeps = _leeps(source, outputs[known.numpy()], labels) if own.classes is not None else {}
                    measured.append(_measured(vectors[known, 0].numpy(), labels, own.classes is not None, leeps))
        means = pd.DataFrame(measured).mean().to_dict()  # over the labels of a multilabel task
        leep_task = max((name for name in means if name not in _FEATURES), key=lambda name: means[name], default=None)
        rows.append(
            {
                "task": own.task,
                "source": source.name,
                "columns": len(prepared.features.columns),
                "logme": means["logme"],
                "h_score": means["h_score"],
                "leep": math.nan if leep_task is None else means[leep_task],
                "leep_task": leep_task,
            }
        )
    return rows


def _vectors(target: TargetData, source: Source, prepared: Prepared) -> Tensor:
    """[N, 1 + W, H]: what the source's encoder makes of the training rows, and of the words of each."""
    study = with_source_encoder(target.study, source)
    encoder = from_source(study, source, prepared.inputs, prepared.targets).sharing.eval()
    return encoder(prepared.train.features).unflatten(1, (1 + prepared.inputs.words, -1))


def _measured(features: NDArray[np.float32], labels: Labels, are_classes: bool, leeps: Leeps) -> dict[str, float]:
    found = features.astype(np.float64)
    score = h_score(found, labels) if are_classes else math.nan
    return {"logme": logme(found, labels, are_classes), "h_score": score} | leeps


def _leeps(source: Source, outputs: NDArray[np.float32], labels: Labels) -> Leeps:
    """By each task of the source that tells rows' classes apart, or label that it knows."""
    found = {}
    for theirs, columns in zip(source.saved.targets, source.saved.model.layout.columns, strict=True):
        if theirs.classes is None or theirs.kind == "tokens":
            continue
        probabilities = predictions(outputs, theirs, columns)
        if theirs.kind == "multiclass":
            found[theirs.task] = leep(probabilities, labels)
            continue
        names = [theirs.task] if theirs.labels is None else [f"{theirs.task}_{label}" for label in theirs.labels]
        for name, positive in zip(names, probabilities.reshape(len(labels), -1).T, strict=True):
            found[name] = leep(np.stack([1 - positive, positive], 1), labels)
    return found


def _leeps_of_words(source: Source, words: Tensor, labels: Labels) -> Leeps:
    """By each task of the source whose head reads these vectors [N, H] of words."""
    heads = source.saved.model.heads
    found = {}
    for place in sorted(source.readers):
        theirs, own = source.saved.targets[place], heads.weights.columns[place]
        if theirs.kind == "tokens":
            probabilities = F.linear(words, heads.linear.weight[own], heads.linear.bias[own]).softmax(1)
            found[theirs.task] = leep(probabilities.detach().double().numpy(), labels)
    return found
