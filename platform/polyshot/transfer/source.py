"""What is transferred from: a trained model, the rows that it was trained on, and how it reads another table's rows.

The verbs find it; the methods take its encoder, its heads and its rows. It is never changed.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from torch import nn

from polyshot.data.features import Features, feature_columns
from polyshot.data.prepare import Prepared, prepare
from polyshot.errors import DataError, PolyshotError, RunError, did_you_mean
from polyshot.models.encoders import make_encoder
from polyshot.models.sharing.hard import HardSharing
from polyshot.saved_model import SavedModel
from polyshot.study import Study
from polyshot.study.model import Model
from polyshot.transfer.representation import TaskRepresentation


@dataclass(frozen=True)
class Source:
    """A trained model, of which what a task's head reads is transferred.

    Attributes:
        name: as the target's study calls it, for the words of errors.
        study: as `saved.study`, but with the folder that relative paths to its table start from.
        task: whose representation it is, where the tasks do not all read the same; the first one's by default.
    """

    name: str
    saved: SavedModel
    study: Study
    task: str | None = None

    def __post_init__(self) -> None:
        tasks = list(self.saved.study.tasks)
        if self.task is not None and self.task not in tasks:
            raise RunError(
                f"transfer.source_task: '{self.name}' has no task '{self.task}'; name one of {', '.join(tasks)}."
                f"{did_you_mean(self.task, tasks)}"
            )

    @property
    def encoder(self) -> nn.Module:
        """A copy of what the task's head reads, as an encoder [B, F] → [B, H]."""
        sharing = self.saved.model.sharing
        if isinstance(sharing, HardSharing):
            return copy.deepcopy(sharing.encoder)
        settings = Model.model_validate({"encoder": self.encoder_section}).encoder
        encoder = make_encoder(settings, self.saved.features.layout, self.saved.study.folder)
        if isinstance(encoder, TaskRepresentation):
            encoder.sharing.load_state_dict(sharing.state_dict())
        else:  # a user's may have its blocks under another name as well
            encoder.load_state_dict(sharing.encoder_state(self._place) or {}, strict=False)
        return encoder

    @cached_property
    def encoder_section(self) -> dict[str, Any]:
        """What a study says that has this encoder."""
        study = self.saved.study
        if self.saved.model.sharing.encoder_state(self._place) is not None:
            return study.model.encoder.model_dump(mode="json")
        kind = f"{TaskRepresentation.__module__}:{TaskRepresentation.__qualname__}"
        tasks = list(study.tasks)
        options = {"model": study.model.model_dump(mode="json"), "tasks": tasks, "task": tasks[self._place]}
        return {"kind": kind, "options": options}

    @cached_property
    def readers(self) -> AbstractSet[int]:
        """Places of the tasks whose heads read what is transferred."""
        sharing = self.saved.model.sharing
        read = sharing.reads(self._place)
        return {place for place in range(len(self.saved.targets)) if sharing.reads(place) == read}

    @property
    def _place(self) -> int:
        return 0 if self.task is None else list(self.saved.study.tasks).index(self.task)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the model and the part of it that is transferred."""
        digest = hashlib.sha256(self.saved.study.to_yaml().encode())
        digest.update("\n".join(self.saved.features.names).encode())
        if len(self.readers) < len(self.saved.targets):
            digest.update(repr(sorted(self.readers)).encode())
        for value in self.saved.model.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def reading(self, table: pd.DataFrame, study: Study) -> Features:
        """How the source reads rows of the target's table.

        Columns are found by their names and encoded by what was fitted to the source's training rows. Those that the
        target lacks, or may not learn from, count as missing in every row.

        Raises:
            DataError: when no column is shared.
        """
        usable = feature_columns(table, study)
        shared = [name for name in self._columns if name in usable]
        if not shared:
            theirs, ours = (", ".join(f"'{name}'" for name in names[:3]) for names in (self._columns, usable))
            raise DataError(
                f"transfer.source: '{self.name}' learnt from no column that this table has (it from {theirs}, …; this "
                f"table has {ours}, …); rename columns that are the same, or transfer from another source"
            )
        return self.saved.features.blanking([name for name in self._columns if name not in shared])

    def notes(self, table: pd.DataFrame, study: Study) -> list[str]:
        """What the user should know of what is transferred, and of columns that only one table has, a sentence each."""
        reading, notes = self.reading(table, study), self.sharing_notes
        if absent := [name for name in self._columns if name in reading.blank]:
            notes.append(f"'{self.name}' learnt from columns that count as missing here: {_listed(absent)}.")
        if added := [name for name in feature_columns(table, study) if name not in reading.columns]:
            notes.append(f"Columns that '{self.name}' did not know are for training from scratch: {_listed(added)}.")
        return notes

    @property
    def sharing_notes(self) -> list[str]:
        """Of which task the representation is, where they do not all read the same."""
        if len(self.readers) == len(self.saved.targets):
            return []
        sharing, task = self.saved.study.model.sharing.kind, self.saved.targets[self._place].task
        return [
            f"The tasks of '{self.name}' share by '{sharing}': what the head of '{task}' reads is transferred; "
            "transfer.source_task names another."
        ]

    @cached_property
    def prepared(self) -> Prepared:
        """The source's own rows, as its encoder takes them.

        Raises:
            RunError: when they cannot be read again.
        """
        place = f"transfer.source: the rows that '{self.name}' learnt from"
        try:
            prepared = prepare(self.study)
        except PolyshotError as error:
            raise RunError(
                f"{place} are needed and cannot be read ({error}); name the source by its study file"
            ) from error
        if prepared.features.names != self.saved.features.names:
            raise RunError(f"{place} have changed since; train it again")
        return prepared

    @property
    def _columns(self) -> list[str]:
        return list(self.saved.features.kinds)


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
