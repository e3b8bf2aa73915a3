"""What is transferred from: a trained model, the rows that it was trained on, and how it reads another table's rows.

The verbs find it; the methods take its encoder, its heads and its rows. It is never changed.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from torch import nn

from polyshot.data.features import Features, feature_columns
from polyshot.data.prepare import Prepared, prepare
from polyshot.errors import DataError, PolyshotError, RunError
from polyshot.models.sharing.hard import HardSharing
from polyshot.saved_model import SavedModel
from polyshot.study import Study


@dataclass(frozen=True)
class Source:
    """A trained model with one encoder for all of its tasks.

    Attributes:
        name: as the target's study calls it, for the words of errors.
        study: as `saved.study`, but with the folder that relative paths to its table start from.
    """

    name: str
    saved: SavedModel
    study: Study

    def __post_init__(self) -> None:
        if not isinstance(self.saved.model.sharing, HardSharing):
            raise RunError(
                f"{self.name}: its tasks share by '{self.saved.study.model.sharing.kind}', which has no one encoder to "
                "transfer; train it with model.sharing.kind 'hard'"
            )

    @property
    def encoder(self) -> nn.Module:
        """A copy of the encoder, [B, F] → [B, H]."""
        assert isinstance(self.saved.model.sharing, HardSharing)
        return copy.deepcopy(self.saved.model.sharing.encoder)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the model."""
        digest = hashlib.sha256(self.saved.study.to_yaml().encode())
        digest.update("\n".join(self.saved.features.names).encode())
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
        """What the user should know of columns that only one of both has, a sentence each."""
        reading, notes = self.reading(table, study), []
        if absent := [name for name in self._columns if name in reading.blank]:
            notes.append(f"'{self.name}' learnt from columns that count as missing here: {_listed(absent)}.")
        if added := [name for name in feature_columns(table, study) if name not in reading.columns]:
            notes.append(f"Columns that '{self.name}' did not know are for training from scratch: {_listed(added)}.")
        return notes

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
