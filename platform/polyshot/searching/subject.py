"""What a search trains in each of its trials, and what it optimises: one object that a verb hands in.

Trials, schedulers and records know nothing else of what is trained, so that a search can be of anything that learns in
epochs. `MultiTaskLearning` is the subject of `polyshot search`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from polyshot.data.prepare import TrainingData, prepare
from polyshot.errors import DataError
from polyshot.models.multitask import build_model
from polyshot.searching.costs import model_costs
from polyshot.searching.objective import Objective
from polyshot.study import Study
from polyshot.training.loop import Epoch, TrainingRun, choose_device


class Trained(Protocol):
    """A training that goes on from where it stands, epoch by epoch, such as a `TrainingRun`."""

    device: torch.device
    history: list[Epoch]

    @property
    def finished(self) -> bool: ...

    def epochs(self) -> Iterator[Epoch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Subject(Protocol):
    """The subject of a search. It is pickled, and sent once to every worker process."""

    @property
    def objective(self) -> Objective: ...

    def epochs(self, study: Study) -> int:
        """How many epochs a trial with this study has, unless something ends it earlier."""
        ...

    def begin(self, study: Study) -> Trained:
        """A training of a trial's study, in this process, that has not begun."""
        ...

    def costs(self, study: Study) -> dict[str, float]:
        """Of a trial's model, what the objective asks for and training does not tell; see `searching.costs`."""
        ...

    def train_distributed(self, study: Study, folder: Path, on_epoch: Callable[[Epoch], None]) -> dict[str, Any]:
        """Train a trial's study with `scale.workers` workers; as `training.distributed.train_distributed`."""
        ...


@dataclass(frozen=True)
class MultiTaskLearning:
    """Training runs of a study with other values, on data that most trials share.

    Attributes:
        base: the study that is searched.
        data: its data.
        table: the rows, where the caller gave them in place of `data.source`.
        share: of the labelled training rows that trials get.
    """

    base: Study
    data: TrainingData
    table: pd.DataFrame | None
    objective: Objective
    share: float = 1.0

    def epochs(self, study: Study) -> int:
        return study.training.epochs

    def begin(self, study: Study) -> TrainingRun:
        return TrainingRun(study, self._data_for(study))

    def costs(self, study: Study) -> dict[str, float]:
        if not set(self.objective.costs) - {"training_seconds"}:
            return {}
        data, device = self._data_for(study), choose_device(study)
        model = build_model(study, data.inputs, data.targets).to(device)
        return model_costs(model, data.train.features[:1].to(device), self.objective.costs)

    def train_distributed(self, study: Study, folder: Path, on_epoch: Callable[[Epoch], None]) -> dict[str, Any]:
        from polyshot.training.distributed import train_distributed  # most searches do without Ray Train

        return train_distributed(study, self._data_for(study), folder, on_epoch=on_epoch)

    def _data_for(self, study: Study) -> TrainingData:
        """The data of the base, or a trial's own where its values change what is prepared."""
        data = self.data if have_same_data(study, self.base) else prepare(study, self.table).for_training()
        return data.with_share(self.share, study.seed)


def have_same_data(one: Study, other: Study) -> bool:
    """Whether what is prepared for one study serves the other one, too."""

    def targets(of: Study) -> list[dict[str, Any]]:
        return [task.model_dump(exclude={"weight", "loss", "metric"}) for task in of.tasks.values()]

    return one.data == other.data and targets(one) == targets(other)


def check_share(data: TrainingData, share: float, seed: int) -> None:
    """See that this share of the labelled training rows is enough to learn every task from.

    Raises:
        DataError: when it is not.
    """
    train = data.with_share(share, seed).train
    for target, own in zip(data.targets, data.labels.columns, strict=True):
        if len(train.targets[:, own][train.mask[:, own]].unique()) < 2:
            raise DataError(
                f"search.fidelity: of the first trials' share of the labels ({len(train)} training rows), task "
                f"'{target.task}' has no two different ones to learn from; use 'epochs'"
            )
