"""Several sources for one target, ranked by what their features and predictions tell of its labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from polyshot.training.metrics import predictions
from polyshot.transfer.problem import TargetData
from polyshot.transfer.source import Source
from polyshot.transfer.transferability.h_score import h_score
from polyshot.transfer.transferability.leep import leep
from polyshot.transfer.transferability.logme import logme

_FEATURES = ("logme", "h_score")  # what is measured on features; the others are LEEP, by the source's task


def ranking(target: TargetData, sources: Sequence[Source]) -> pd.DataFrame:
    """One row per source and task, for each task the source with the highest LogME first.

    Columns: task, source, columns (how many it shares with the target's table), logme, h_score, leep and leep_task, the
    source's task whose predictions tell most. H-score and LEEP are of classes only; LEEP needs a source with classes.

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
        features = source.encoder.eval()(train.features).double().numpy()
        outputs = source.saved.model.eval()(train.features).numpy()
    rows = []
    for own, columns in zip(prepared.targets, prepared.labels.columns, strict=True):
        are_classes = own.classes is not None
        measured = []
        for place in range(columns.start, columns.stop):
            known = train.mask[:, place].numpy()
            labels = train.targets[known, place].double().numpy()
            if len(np.unique(labels)) > 1:
                leeps = _leeps(source, outputs[known], labels) if are_classes else {}
                score = h_score(features[known], labels) if are_classes else math.nan
                measured.append({"logme": logme(features[known], labels, are_classes), "h_score": score} | leeps)
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


def _leeps(source: Source, outputs: NDArray[np.float32], labels: NDArray[np.float64]) -> dict[str, float]:
    """By each task of the source that tells classes apart, or label that it knows."""
    found = {}
    for theirs, columns in zip(source.saved.targets, source.saved.model.layout.columns, strict=True):
        if theirs.classes is None:
            continue
        probabilities = predictions(outputs, theirs, columns)
        if theirs.kind == "multiclass":
            found[theirs.task] = leep(probabilities, labels)
            continue
        names = [theirs.task] if theirs.labels is None else [f"{theirs.task}_{label}" for label in theirs.labels]
        for name, positive in zip(names, probabilities.reshape(len(labels), -1).T, strict=True):
            found[name] = leep(np.stack([1 - positive, positive], 1), labels)
    return found
