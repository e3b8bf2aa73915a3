"""What every method is given: the target's rows at one budget of labels, as a source reads them and as the study does.

The verbs make one `Problem` for each budget and repetition. Splits are the same for all of them; only the labelled
training rows differ, and what is fitted to labels is fitted to these alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyshot.data.features import Features
from polyshot.data.labels import LabelLayout
from polyshot.data.prepare import EXAMPLE_ROWS, Examples, Prepared, prepare
from polyshot.data.split import folds_of_rows, interleaved
from polyshot.data.tables import read_tables
from polyshot.data.targets import Target
from polyshot.errors import DataError
from polyshot.saved_model import SavedModel
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.training.baselines import SECTIONS, data_digest
from polyshot.transfer.source import Source

FOLD = "polyshot fold"  # the column that says a row's split in one fold
_WORDS = np.array(["test", "validation", "train"], dtype=object)
Budget = int | Literal["all"]
Rows = NDArray[np.int64]


class Learner(Protocol):
    """A meta-trained learner."""

    weights: Mapping[str, Tensor]

    def adapt_table(self, rows: pd.DataFrame, *, steps: int | None = None) -> SavedModel:
        """What it makes of a new task's labelled rows."""
        ...


@dataclass(frozen=True)
class Sources:
    """What there is to transfer from.

    Attributes:
        main: `transfer.source`.
        teachers, learners: what methods name themselves, by the words that they name it with.
    """

    main: Source
    teachers: Mapping[str, Source] = field(default_factory=dict)
    learners: Mapping[str, Learner] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetData:
    """All rows of the target study.

    Attributes:
        table: as they stand in it.
        own: as the study itself reads them.
    """

    study: Study
    table: pd.DataFrame
    own: Prepared
    _readings: dict[tuple[int, bool], tuple[Features, Prepared]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, study: Study, table: pd.DataFrame | None = None) -> TargetData:
        """The study's rows; `table`, when given, stands for what `study.data.source` would give.

        Raises:
            DataError: for rows that cannot be learnt from, or tasks with tables of their own.
        """
        if len(study.tables) > 1:
            raise DataError("transfer: the tasks have tables of their own; make a study of one table for each")
        rows = read_tables(study).rows if table is None else table.reset_index(drop=True)
        return cls(study, rows, prepare(study, table))

    @classmethod
    def folds(cls, study: Study, table: pd.DataFrame | None = None) -> list[TargetData]:
        """The same rows once for each fold of `transfer.folds`, which is its test, and the next one its validation.

        Without cross-validation, one that is split as the study says.

        Raises:
            DataError: as `of`; and for fewer rows or groups than folds.
        """
        folds = study.transfer.folds
        if folds is None:
            return [cls.of(study, table)]
        if len(study.tables) > 1:
            raise DataError("transfer: the tasks have tables of their own; make a study of one table for each")
        rows = read_tables(study).rows if table is None else table.reset_index(drop=True)
        fold = folds_of_rows(rows, study, folds)
        divided = study.with_values({"data.split.column": FOLD, "transfer.folds": None})
        return [
            cls.of(divided, rows.assign(**{FOLD: _WORDS[np.minimum((fold - place) % folds, 2)]}))
            for place in range(folds)
        ]

    @cached_property
    def digest(self) -> str:
        """Changes with the rows, and with what of the study says how a model of them is trained."""
        return f"{self.study.digest(*SECTIONS)}-{data_digest(self.own)}"

    def read_by(self, source: Source, *, its_words: bool = False) -> Prepared:
        """The same splits as the source's encoder takes them.

        Args:
            its_words: with a vector for each word that the source labels, as its model as a whole takes rows, in place
                of the words that the target labels.
        """
        features = source.saved.features
        kept = self._readings.get((id(features), its_words))
        if kept is None or kept[0] is not features:  # another one had its place in memory, or in another process
            kept = self._readings[id(features), its_words] = features, self._read_by(source, its_words)
        return kept[1]

    def _read_by(self, source: Source, its_words: bool) -> Prepared:
        reading = source.reading(self.table, self.study)
        words = {target.words: target.places for target in self.own.targets if target.words is not None}
        if its_words and not words and not reading.layout.words:
            return self.read_by(source)
        if not its_words and (words or reading.layout.words):
            reading = reading.labelling(words)
        features = torch.from_numpy(reading.transform(self.table))

        def examples(split: str, own: Examples) -> Examples:
            return replace(own, features=features[torch.from_numpy(self.own.rows[split])])

        return replace(
            self.own,
            train=examples("train", self.own.train),
            validation=examples("validation", self.own.validation),
            test=examples("test", self.own.test),
            features=reading,
            layout=reading.layout,
            example=self.table.loc[self.own.rows["train"][:EXAMPLE_ROWS], reading.columns].reset_index(drop=True),
        )


@dataclass(frozen=True)
class Problem:
    """The target's tasks with so many labels.

    Attributes:
        study: with the repetition's seed, and batches of no more rows than there are.
        labelled: [n], positions in the training rows.
        steps: updates of an epoch.
    """

    study: Study
    sources: Sources
    target: TargetData
    budget: Budget
    repetition: int
    labelled: Rows
    steps: int

    @classmethod
    def of(cls, target: TargetData, sources: Sources, budget: Budget, repetition: int) -> Problem:
        """The problem at one budget of the study; the labelled rows of a smaller one are among those of a larger.

        Raises:
            DataError: when the training split has fewer labels, or a task has none or only equal ones at this budget.
        """
        study, transfer = target.study, target.study.transfer
        seed = study.seed + repetition
        train = target.own.train
        labels = train.targets[:, 0].where(train.mask[:, 0], torch.nan).numpy()
        has_classes = target.own.targets[0].kind in ("binary", "multiclass")
        order, rank = _order(labels if has_classes else None, train.mask.any(1).numpy(), seed)
        if budget == "all":
            labelled = order
        elif transfer.per_class:
            labelled = order[rank[order] < budget]
        elif budget <= len(order):
            labelled = order[:budget]
        else:
            raise DataError(
                f"transfer.budgets: {budget} labels were asked for and the training split has {len(order)}; "
                "lower it, or use 'all'"
            )
        labelled = np.sort(labelled)
        batch = min(study.training.batch_size, len(labelled))
        steps = math.ceil(len(order) / study.training.batch_size)
        study = study.with_values({"seed": seed, "training.batch_size": batch})
        return cls(study, sources, target, budget, repetition, labelled, steps)._checked()

    @property
    def source(self) -> Source:
        return self.sources.main

    @cached_property
    def own(self) -> Prepared:
        """The rows as the study itself reads them."""
        return self._at_budget(self.target.own)

    @cached_property
    def shared(self) -> Prepared:
        """The rows as the source's encoder takes them."""
        return self.read_by(self.source)

    def read_by(self, source: Source, *, its_words: bool = False) -> Prepared:
        """As `TargetData.read_by`."""
        return self._at_budget(self.target.read_by(source, its_words=its_words))

    @cached_property
    def own_rows(self) -> Tensor:
        """[N, F]: all training rows, whether their labels may be known or not, as the study itself reads them."""
        return self.target.own.train.features

    @cached_property
    def shared_rows(self) -> Tensor:
        """[N, F]: the same as the source's encoder takes them."""
        return self.target.read_by(self.source).train.features

    @cached_property
    def once(self) -> Examples:
        """The labelled training rows, each once, as the source's encoder takes them."""
        return self.each_once(self.target.read_by(self.source))

    @property
    def labelled_table(self) -> pd.DataFrame:
        """The labelled training rows as they stand in the table."""
        return self.target.table.iloc[self.target.own.rows["train"][self.labelled]]

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch: every budget has as many updates, for which few rows are repeated."""
        batch = self.study.training.batch_size
        return max(len(self.labelled), (self.steps - 1) * batch + 1)

    def _at_budget(self, full: Prepared) -> Prepared:
        targets = self.targets
        once = self.each_once(full)
        repeated = torch.arange(self.epoch_rows) % len(once)
        return replace(
            full,
            train=Examples(once.features[repeated], once.targets[repeated], once.mask[repeated]),
            validation=_encoded(full.validation, full.targets, targets),
            test=_encoded(full.test, full.targets, targets),
            targets=targets,
        )

    def each_once(self, full: Prepared) -> Examples:
        """The labelled ones of all training rows."""
        rows = torch.from_numpy(self.labelled)
        some = Examples(full.train.features[rows], full.train.targets[rows], full.train.mask[rows])
        return _encoded(some, full.targets, self.targets)

    @cached_property
    def targets(self) -> list[Target]:
        """The tasks' encodings, whose means and scales are those of the labelled rows alone."""
        train = self.target.own.train
        fitted = []
        for target, own in zip(self.target.own.targets, self.target.own.labels.columns, strict=True):
            if target.classes is None:
                labels, known = train.targets[self.labelled, own.start], train.mask[self.labelled, own.start]
                values = target.decode(labels[known].double().numpy())
                target = replace(target, mean=float(values.mean()), scale=float(values.std()))
            fitted.append(target)
        return fitted

    def _checked(self) -> Problem:
        train = self.target.own.train
        for target, own in zip(self.target.own.targets, self.target.own.labels.columns, strict=True):
            known = train.targets[self.labelled, own][train.mask[self.labelled, own]]
            if len(known.unique()) < 2:
                raise DataError(
                    f"transfer.budgets: with a budget of {self.budget}, task '{target.task}' has no two different "
                    "labels to learn from; raise it"
                )
        return self


def _order(labels: NDArray | None, known: NDArray[np.bool_], seed: int) -> tuple[Rows, Rows]:
    """The order in which training rows get their labels, and each row's place within its class [N].

    Of each class one row comes first, then the classes in proportion; what has no label of any task never comes.
    """
    random = np.random.default_rng(derive_seed(seed, "budget"))
    rows = random.permutation(np.flatnonzero(known))
    classes = np.zeros(len(rows)) if labels is None else np.nan_to_num(labels[rows], nan=-1)
    order, within = interleaved(classes)
    rank = np.full(len(known), len(known), dtype=np.int64)
    rank[rows] = within
    return rows[order], rank


def _encoded(examples: Examples, before: Sequence[Target], after: Sequence[Target]) -> Examples:
    """The same labels in other encodings: of regression tasks, by another mean and scale."""
    labels = examples.targets.clone()
    for old, new, own in zip(before, after, LabelLayout.of(before).columns, strict=True):
        if old.classes is None:
            labels[:, own] = (labels[:, own] * old.scale + old.mean - new.mean) / new.scale
    return replace(examples, targets=labels.where(examples.mask, 0.0))
