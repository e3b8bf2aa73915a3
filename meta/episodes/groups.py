"""Groups of a table as tasks: adapt to a few rows of a school, a patient, a machine, and predict its other rows.

Groups are kept apart by the splits of `data`, and features and labels are scaled by the training groups alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from polyshot.data.features import Features
from polyshot.data.prepare import Examples, Prepared
from polyshot.data.split import WORDS
from polyshot.data.targets import Target
from polyshot.errors import DataError
from polyshot.meta.episodes.base import Episodes, Share, Split, everything
from polyshot.meta.episodes.members import Members
from polyshot.meta.objectives import CrossEntropy, Objective, SquaredError
from polyshot.study.meta import GroupEpisodes


class Groups:
    """One of the study's tasks, learnt group by group. Groups that have no row beside their support are left out.

    Attributes:
        pooled: the training rows with the labels of all of the study's `targets`, whatever their group.
        notes: how many groups were left out, where some were.
    """

    def __init__(self, prepared: Prepared, task: str, settings: GroupEpisodes):
        """`prepared` must have groups.

        Raises:
            DataError: for a multilabel task, or when a split has no group that is large enough.
        """
        place = [target.task for target in prepared.targets].index(task)
        self.name = task
        self.target: Target = prepared.targets[place]
        if self.target.kind == "multilabel":
            raise DataError(
                f"meta.episodes.task: '{task}' is a multilabel task and adaptation is to one target; name a task of "
                "another kind"
            )
        self.targets = prepared.targets
        self.pooled = prepared.train
        self.features: Features = prepared.features
        self.example = prepared.example
        self.shape = (prepared.train.features.shape[1],)
        self.outputs = 1 if self.target.classes is None else len(self.target.classes)
        self.objective: Objective = SquaredError(self.target.scale) if self.target.classes is None else CrossEntropy()
        self.notes: list[str] = []
        self._support = settings.support
        self._query = settings.query
        splits: dict[Split, Examples] = {
            "train": prepared.train,
            "validation": prepared.validation,
            "test": prepared.test,
        }
        self._splits = {
            split: self._of_split(split, examples, prepared.groups[split], prepared.labels.columns[place].start)
            for split, examples in splits.items()
        }

    def sample(self, split: Split, tasks: int, generator: torch.Generator, share: Share = everything) -> Episodes:
        """Groups are drawn with replacement. Beyond training, the query is all rows of a group beside the support."""
        members, inputs, labels = self._splits[split]
        most = members.rows.shape[1]
        count = min(self._support + self._query, most) if split == "train" else most
        groups = torch.randint(len(members.counts), (tasks,), generator=generator)
        rows, known = map(share, members.draw(groups, count, generator))
        support, query = rows[:, : self._support], rows[:, self._support :]
        return Episodes(inputs[support], labels[support], inputs[query], labels[query], known[:, self._support :])

    def groups(self, split: Split) -> int:
        """How many groups a split has."""
        return len(self._splits[split][0].counts)

    def rows(self, split: Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All rows of a split's groups: inputs [R, F], labels [R], and the number of each one's group [R]."""
        members, inputs, labels = self._splits[split]
        known = torch.arange(members.rows.shape[1]) < members.counts.unsqueeze(1)
        groups = torch.arange(len(members.counts)).unsqueeze(1).expand_as(members.rows)
        order = members.rows[known]
        return inputs[order], labels[order], groups[known]

    def _of_split(
        self, split: Split, examples: Examples, groups: NDArray[np.int64], column: int
    ) -> tuple[Members, torch.Tensor, torch.Tensor]:
        labelled = examples.mask[:, column].numpy()
        _, owners, counts = np.unique(groups[labelled], return_inverse=True, return_counts=True)
        enough = counts > self._support
        if not enough.any():
            raise DataError(
                f"meta.episodes.support: no group of the {WORDS[split]} split has more than {self._support} rows with "
                f"a label of '{self.target.column}'; lower it, or group by a coarser column"
            )
        if not enough.all():
            self.notes.append(
                f"{np.count_nonzero(~enough)} of {len(enough)} groups of the {WORDS[split]} split have no more than "
                f"{self._support} labelled rows and are left out."
            )
        kept = enough[owners]
        rows = torch.from_numpy(np.flatnonzero(labelled)[kept])
        renumbered = np.cumsum(enough) - 1
        labels = examples.targets[rows, column].to(self.objective.label_type)
        return Members.of(renumbered[owners[kept]]), examples.features[rows], labels
