"""A study's table as tensors in memory: features, targets and masks of the three splits.

Called once per run by everything that trains. It reads and encodes; batches, devices and losses are the training
loop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from polyshot.data.columns import with_text_names
from polyshot.data.features import Features, feature_columns
from polyshot.data.images import ImageReading
from polyshot.data.inputs import InputLayout
from polyshot.data.labels import LabelLayout
from polyshot.data.pretrained import located
from polyshot.data.split import SPLITS, WORDS, Rows, groups_of_rows, interleaved, split_rows
from polyshot.data.tables import Tables, read_tables
from polyshot.data.targets import Target, fit_target
from polyshot.data.text import TokenReading
from polyshot.errors import DataError
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.study.data import Images
from polyshot.study.model import ConvNet, CustomEncoder, TorchvisionModel, Transformer

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Examples:
    """The rows of one split.

    Attributes:
        features: float32 [N, F].
        targets: float32 [N, L], encoded (see `Target.encode`), 0 where the label is missing. A task has one column,
            or as many as it has labels (see `Prepared.labels`).
        mask: bool [N, L], true where the label is known.
    """

    features: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> Examples:
        return Examples(self.features.to(device), self.targets.to(device), self.mask.to(device))


@dataclass(frozen=True)
class TrainingData:
    """What a training reads, and all that a worker is sent: tensors, and not what they were made by.

    Attributes:
        targets: [T], in the order of the study's tasks.
        layout: what stands where in a row; None where all of it is numbers.
    """

    train: Examples
    validation: Examples
    targets: list[Target]
    layout: InputLayout | None = field(default=None, kw_only=True)

    @property
    def inputs(self) -> InputLayout:
        return self.layout or InputLayout(self.train.features.shape[1])

    @property
    def labels(self) -> LabelLayout:
        """Which columns of labels and masks belong to which task."""
        return LabelLayout.of(self.targets)

    def with_share(self, share: float, seed: int) -> TrainingData:
        """The same with a share of the training rows that have a label, at least one; of 1, the same with all rows.

        Rows are drawn in proportion from each combination of tasks that have a label and of their classes; those of a
        smaller share are among those of a larger one.
        """
        if share == 1:
            return self
        train, labelled = self.train, self.labels.labelled(self.train.mask)
        marks = [labelled.long()]
        for target, own in zip(self.targets, self.labels.columns, strict=True):
            if target.kind in ("binary", "multiclass"):
                marks.append(train.targets[:, own].long().where(train.mask[:, own], -1))
        random = np.random.default_rng(derive_seed(seed, "labels"))
        rows = random.permutation(labelled.any(1).nonzero()[:, 0].numpy())
        _, strata = np.unique(torch.cat(marks, 1).numpy()[rows], axis=0, return_inverse=True)
        order, _ = interleaved(strata.reshape(-1), random)
        some = torch.from_numpy(np.sort(rows[order[: max(1, round(share * len(rows)))]]))
        return replace(self, train=Examples(train.features[some], train.targets[some], train.mask[some]))


@dataclass(frozen=True)
class Prepared(TrainingData):
    """A study's data, ready to train on and to judge by.

    Attributes:
        rows: positions in the table of each split's rows.
        example: the first training rows as they stand in the table, used columns only.
        notes: what the user should know and need not mend, a sentence each (columns left out, classes never seen).
        groups: the group of each of a split's rows where the study has `data.group`; else empty.
    """

    test: Examples
    features: Features
    rows: dict[str, Rows]
    example: pd.DataFrame
    notes: list[str]
    groups: dict[str, Rows] = field(default_factory=dict)

    def for_training(self) -> TrainingData:
        return TrainingData(self.train, self.validation, self.targets, layout=self.layout)

    def for_task(self, task: str) -> Prepared:
        """The same splits and features with one task, and the rows that have its label, as when it is learnt alone."""
        return self.for_tasks([task])

    def for_tasks(self, tasks: Sequence[str]) -> Prepared:
        """The same splits and features with some of the tasks, in the order given, and the rows that have a label."""
        names = [target.task for target in self.targets]
        places = [names.index(task) for task in tasks]
        columns = self.labels.places(places)
        splits = dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))
        known = {split: examples.mask[:, columns].any(1) for split, examples in splits.items()}

        def chosen(split: str) -> Examples:
            examples, rows = splits[split], known[split]
            return Examples(
                examples.features[rows], examples.targets[rows][:, columns], examples.mask[rows][:, columns]
            )

        def of_rows(values: dict[str, Rows]) -> dict[str, Rows]:
            return {split: of_split[known[split].numpy()] for split, of_split in values.items()}

        return replace(
            self,
            train=chosen("train"),
            validation=chosen("validation"),
            test=chosen("test"),
            targets=[self.targets[place] for place in places],
            rows=of_rows(self.rows),
            groups=of_rows(self.groups),
        )


def prepare(study: Study, table: pd.DataFrame | None = None) -> Prepared:
    """The study's data as CPU tensors; `table`, when given, stands for what `study.data.source` would give.

    Rows without any label are kept, masked. Everything is fitted on the training rows.

    Raises:
        DataError: for whatever is wrong with the table, in one sentence.
        RunError: when the source function cannot be imported.
    """
    tables = read_tables(study) if table is None else _given(study, table)
    table = tables.rows
    columns = feature_columns(table, study)
    rows = split_rows(table, study, tables.origin)
    targets = [fit_target(name, task, table, study.targets[name], rows["train"]) for name, task in study.tasks.items()]
    labels = np.concatenate([target.read(table) for target in targets], axis=1)
    notes = _check_classes(targets, labels, rows)
    tokens, images = _token_readings(study, columns, targets), _image_readings(study, columns)
    features = Features.fit(table.iloc[rows["train"]], columns, study.data.columns, study.data.text, tokens, images)
    require_readable(study, features)

    def examples(split: str) -> Examples:
        known = ~np.isnan(labels[rows[split]])
        return Examples(
            torch.from_numpy(features.transform(table.iloc[rows[split]])),
            torch.from_numpy(np.where(known, labels[rows[split]], np.float32(0))),
            torch.from_numpy(known),
        )

    train, validation, test = map(examples, SPLITS)
    example = table.loc[rows["train"][:EXAMPLE_ROWS], features.columns].reset_index(drop=True)
    groups = {}
    if study.data.group is not None:
        _, group_of_row = groups_of_rows(table, study.data.group)
        groups = {split: group_of_row[rows[split]] for split in SPLITS}
    return Prepared(
        train,
        validation,
        targets,
        test,
        features,
        rows,
        example,
        [*tables.notes, *features.notes, *notes],
        groups,
        layout=features.layout,
    )


def _token_readings(study: Study, columns: Sequence[str], targets: Sequence[Target]) -> dict[str, TokenReading]:
    """The columns of text that the study's encoder reads as tokens: of words that are labelled, and of others.

    Raises:
        DataError: when words that are to be labelled are no feature.
    """
    places: dict[str, int] = {}
    for target in targets:
        if target.words is None:
            continue
        if target.words not in columns:
            raise DataError(
                f"tasks.{target.task}.words: the column '{target.words}' is no feature; add it to data.features or "
                "take it out of data.ignore"
            )
        places[target.words] = max(target.places, places.get(target.words, 0))
    settings = study.model.text
    if settings is None:
        return {}
    model = located(settings.model, study.folder)
    texts = [name for name in columns if study.data.columns.get(name) == "text" and name not in study.data.text]
    read = [name for name in columns if name in texts or name in places]
    return {name: TokenReading(model, settings.max_tokens, places.get(name, 0)) for name in read}


def _image_readings(study: Study, columns: Sequence[str]) -> dict[str, ImageReading]:
    """The columns of images, with means and deviations yet to be fitted."""
    data = study.data
    named = [name for name in columns if name in data.images or data.columns.get(name) == "image"]
    return {name: ImageReading(data.images.get(name, Images()), study.folder) for name in named}


def require_readable(study: Study, features: Features) -> None:
    """Check that the study's encoder reads what the columns gave.

    Raises:
        DataError: for columns that it does not read, or none that it does.
    """
    encoder, layout = study.model.encoder, features.layout
    texts, images = ([place.column for place in places] for places in (layout.texts, layout.images))
    if images and study.model.image is None and not isinstance(encoder, CustomEncoder):
        raise DataError(
            f"model.encoder: '{encoder.kind}' reads no images, and the column '{images[0]}' is one; use cnn, "
            "torchvision or, beside other columns, mixed"
        )
    if not isinstance(encoder, Transformer | ConvNet | TorchvisionModel):
        return
    read = texts if isinstance(encoder, Transformer) else images
    if others := [name for name in features.columns if name not in read]:
        raise DataError(
            f"model.encoder: '{encoder.kind}' reads {'text' if read is texts else 'images'} only and '{others[0]}' is "
            "none; use kind 'mixed', or leave the column out (data.ignore)"
        )


def _given(study: Study, table: pd.DataFrame) -> Tables:
    """The caller's rows in place of the study's one table."""
    if own := next((name for name, task in study.tasks.items() if task.source is not None), None):
        raise DataError(f"tasks.{own}.source: the task has a table of its own, so no table in memory can be given")
    table = with_text_names(table, "the table").reset_index(drop=True)
    if table.empty:
        raise DataError("the table has no rows; give a table with rows")
    return Tables(table, np.zeros(len(table), dtype=np.int64), [])


def _check_classes(targets: list[Target], labels: np.ndarray, rows: dict[str, Rows]) -> list[str]:
    """Check what can be learnt and measured, and note the classes that cannot.

    Raises:
        DataError: when some split of a binary task has one class only, or the training split of any task or label has,
            or all labels of a multilabel task in some split.
    """
    notes: list[str] = []
    for target, own in zip(targets, LabelLayout.of(targets).columns, strict=True):
        if target.kind == "multilabel":
            notes += _check_labels(target, {split: labels[rows[split], own] for split in SPLITS})
            continue
        if target.classes is None or target.kind == "tokens":
            continue
        for split in SPLITS if target.kind == "binary" else SPLITS[:1]:
            found = np.unique(labels[rows[split], own])
            found = found[~np.isnan(found)].astype(int)
            if len(found) < 2:
                only = target.classes[found[0]]
                raise DataError(
                    f"tasks.{target.task}: the {WORDS[split]} split has one class only ({only!r}) of "
                    f"'{target.column}'; change data.split.seed or the fractions, or add rows"
                )
            if split == "train" and (unseen := [c for i, c in enumerate(target.classes) if i not in set(found)]):
                shown = ", ".join(repr(value) for value in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
                notes.append(
                    f"Task '{target.task}': {len(unseen)} of {len(target.classes)} classes ({shown}) are in no "
                    "training row, so their rows will count as errors."
                )
    return notes


def _check_labels(target: Target, labels: dict[str, np.ndarray]) -> list[str]:
    """The same for the labels [n, K] of a multilabel task's splits: a label may be rare, but not unheard of."""
    notes = []
    for split, of_split in labels.items():
        both = [(own == 0).any() and (own == 1).any() for own in of_split.T]
        lacking = [column for column, has in zip(target.columns, both, strict=True) if not has]
        if lacking and split == "train":
            raise DataError(
                f"tasks.{target.task}: the training split has one class only of '{lacking[0]}'; change data.split.seed "
                f"or the fractions, add rows, or take it out of tasks.{target.task}.target"
            )
        if not any(both):
            raise DataError(
                f"tasks.{target.task}: the {WORDS[split]} split has one class only of every label; change "
                "data.split.seed or the fractions, or add rows"
            )
        if lacking:
            shown = ", ".join(repr(column) for column in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            notes.append(
                f"Task '{target.task}': the {WORDS[split]} split has one class only of {len(lacking)} of {len(both)} "
                f"labels ({shown}), which ranking metrics leave out there."
            )
    return notes
