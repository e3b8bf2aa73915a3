"""A meta-trained learner as a folder, and what it becomes on a new task's labelled rows: a model that predicts.

Written by `polyshot meta`, read by `polyshot adapt` and from Python. Loading runs no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from polyshot.data.features import Features
from polyshot.data.targets import Target
from polyshot.errors import DataError, RunError
from polyshot.meta.episodes import Classes, EpisodeSource, Groups
from polyshot.meta.inserts import merged, mlp_with_adapters
from polyshot.meta.learners import Adapted, Learner, build_learner
from polyshot.meta.learners.base import by_autograd
from polyshot.meta.learners.gradient import GradientLearner
from polyshot.meta.networks import build_network
from polyshot.meta.objectives import CrossEntropy, SquaredError
from polyshot.meta.stacked import STATISTICS, Weights
from polyshot.models.multitask import MultiTaskModel, build_model
from polyshot.models.sharing.hard import HardSharing
from polyshot.saved_model import SavedModel
from polyshot.study import Study
from polyshot.study.model import MLP

_META, _WEIGHTS, _TARGET, _EXAMPLE = "meta.json", "meta_weights.pt", "target.json", "example.json"


@dataclass(frozen=True)
class Table:
    """How the rows of a study's table become inputs and labels; a learner of pictures or waves has none."""

    features: Features
    target: Target
    example: pd.DataFrame


class AdaptedModel:
    """A learner that has seen a task's support rows; it predicts, and never changes.

    Attributes:
        state: what the support rows made of the learner.
        classes: the labels of the support rows in sorted order, for a learner of classes; else None.
    """

    def __init__(self, learner: Learner, weights: Weights, state: Adapted, classes: NDArray[Any] | None):
        self.state = state
        self.classes = classes
        self._learner = learner
        self._weights = weights

    @torch.no_grad()
    def outputs(self, inputs: ArrayLike) -> NDArray[np.float32]:
        """[N, ...] → [N, O]: values, or logits of `classes`. Rows are normalised together, if by batches."""
        rows = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).unsqueeze(0)
        outputs = self._learner.outputs(self._weights, self.state, rows)[0]
        return outputs[:, : len(self.classes)].numpy() if self.classes is not None else outputs.numpy()

    def predict(self, inputs: ArrayLike) -> NDArray[Any]:
        """[N, ...] → values or labels [N]."""
        outputs = self.outputs(inputs)
        return outputs[:, 0] if self.classes is None else self.classes[outputs.argmax(1)]


class SavedLearner:
    """A meta-trained learner: `adapt` to a new task, from arrays or from rows of a table."""

    def __init__(
        self,
        study: Study,
        shape: Sequence[int],
        outputs: int,
        kind: str,
        weights: Weights,
        table: Table | None,
        bytes: bool = False,  # noqa: A002 - what it says in the description of a saved one
    ):
        """A learner of `kind` "regression" or "classification", trained on inputs that were `bytes` or numbers."""
        self.study = study
        self.shape = tuple(shape)
        self.outputs = outputs
        self.kind = kind
        self.weights = weights
        self.table = table
        self.bytes = bytes

    @classmethod
    def of(cls, study: Study, source: EpisodeSource, weights: Weights) -> SavedLearner:
        kind = "regression" if isinstance(source.objective, SquaredError) else "classification"
        table = Table(source.features, source.target, source.example) if isinstance(source, Groups) else None
        is_bytes = isinstance(source, Classes) and source.is_bytes
        return cls(study, source.shape, source.outputs, kind, weights, table, is_bytes)

    # --- keeping -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.yaml").write_text(self.study.to_yaml(), encoding="utf-8")
        description = {"shape": self.shape, "outputs": self.outputs, "kind": self.kind, "bytes": self.bytes}
        (folder / _META).write_text(json.dumps(description), encoding="utf-8")
        torch.save({name: value.cpu().clone() for name, value in self.weights.items()}, folder / _WEIGHTS)
        if self.table is not None:
            self.table.features.save(folder)
            (folder / _TARGET).write_text(json.dumps(self.table.target.to_dict()), encoding="utf-8")
            example = self.table.example.to_json(orient="split", index=False, date_format="iso")
            (folder / _EXAMPLE).write_text(example, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> SavedLearner:
        """Read what `save` wrote.

        Raises:
            RunError: when it is no such folder, or a file of it is missing or damaged.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / _META).read_text(encoding="utf-8"))
            study = Study.load(folder / "study.yaml")
            weights = torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True)
            table = None
            if (folder / _TARGET).exists():
                target = Target.from_dict(json.loads((folder / _TARGET).read_text(encoding="utf-8")))
                example = pd.DataFrame(**json.loads((folder / _EXAMPLE).read_text(encoding="utf-8")))
                table = Table(Features.load(folder), target, example)
            return cls(study, **description, weights=weights, table=table)
        except FileNotFoundError as error:
            raise RunError(
                f"{folder}: is no meta-learner, it has no {Path(error.filename).name}; run `polyshot meta`"
            ) from None
        except (json.JSONDecodeError, RuntimeError, KeyError, TypeError) as error:
            raise RunError(f"{folder}: the learner is damaged ({error}); meta-train it again") from error

    # --- adapting ----------------------------------------------------------------------------------------------------

    def adapt(self, inputs: ArrayLike, labels: ArrayLike, *, steps: int | None = None) -> AdaptedModel:
        """Learn a new task from its labelled rows.

        Args:
            inputs: [K, ...], as the episodes gave them.
            labels: [K]; numbers for regression, any labels for classification. Learners that solve for their solution
                and those with a `zero_head` take any number of classes; others that take steps at most as many as they
                were trained to tell apart.
            steps: of gradient descent; by default as many as in meta-training.

        Raises:
            DataError: for no rows, inputs of another shape, labels that are no numbers, one class only, or too many.
        """
        rows = torch.as_tensor(np.asarray(inputs), dtype=torch.float32)
        values = np.asarray(labels)
        if rows.shape[1:] != self.shape or values.shape != rows.shape[:1] or not len(rows):
            raise DataError(
                f"the support must be inputs [K, {', '.join(map(str, self.shape))}] with as many labels and one row or "
                f"more, got inputs {list(rows.shape)} and labels {list(values.shape)}"
            )
        if self.kind == "regression":
            if values.dtype.kind not in "biuf" or not np.isfinite(values.astype(float)).all():
                raise DataError("the support's labels must be finite numbers; leave out rows without a label")
            return self._adapted(rows, torch.as_tensor(values, dtype=torch.float32), None, self.outputs, steps)
        classes, indices = np.unique(values, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"the support has one class only ({classes[0]!s}); give rows of two classes or more")
        return self._adapted(rows, torch.from_numpy(indices), classes, len(classes), steps)

    def adapt_table(self, rows: pd.DataFrame, *, steps: int | None = None) -> SavedModel:
        """Learn a new group of the study's table from its labelled rows: an ordinary single-task model.

        Rows without a label are left out.

        Raises:
            DataError: when a column is missing or no row has a label, or a label is none of the classes trained with.
            RunError: for a learner that was not trained on a table, or whose network normalises by batches.
        """
        if self.table is None:
            raise RunError(
                "the learner was not trained on the groups of a table; give a learner of pictures a folder of them, "
                "and others their inputs by polyshot.meta.saved.SavedLearner.adapt(x, y)"
            )
        target = self.table.target
        if target.column not in rows:
            raise DataError(f"the support has no column '{target.column}', which holds the labels; add it")
        labels = target.encode(rows[target.column])
        known = ~np.isnan(labels)
        if not known.any():
            raise DataError(f"the support has no label in '{target.column}'; give a row with one or more")
        inputs = torch.from_numpy(self.table.features.transform(rows[known]))
        learner = self._learner(self.outputs)
        encoded = torch.from_numpy(labels[known]).to(learner.objective.label_type)
        made = self._adapted(inputs, encoded, None, self.outputs, steps)
        return SavedModel(*self._as_single_task(learner, made.state), self.table.features, [target])

    def _adapted(
        self, rows: Tensor, labels: Tensor, classes: NDArray[Any] | None, ways: int, steps: int | None
    ) -> AdaptedModel:
        learner = self._learner_of(ways)
        if ways > self.outputs and not learner.any_ways:
            raise DataError(
                f"the support has {ways} classes and the learner was trained to tell {self.outputs} apart; leave "
                "some out, meta-train with more ways, or with meta.learner.zero_head, protonet or ridge for any number"
            )
        if isinstance(learner, GradientLearner):
            steps = learner.steps if steps is None else steps
        with torch.no_grad():
            trajectory = learner.adapt(
                self.weights, rows.unsqueeze(0), labels.unsqueeze(0), steps or 0, by_autograd(create_graph=False)
            )
        return AdaptedModel(learner, self.weights, trajectory[-1], classes)

    def restored(self, state: Adapted, classes: NDArray[Any]) -> AdaptedModel:
        """The model whose `state` and `classes` these are."""
        return AdaptedModel(self._learner_of(len(classes)), self.weights, state, classes)

    def _learner_of(self, ways: int) -> Learner:
        """For so many classes, where it can take any number of them."""
        learner = self._learner(self.outputs)
        return self._learner(ways) if learner.any_ways and ways != self.outputs else learner

    def _learner(self, outputs: int) -> Learner:
        objective = SquaredError() if self.kind == "regression" else CrossEntropy()
        network = build_network(self.study, self.shape, outputs)
        return build_learner(self.study.meta.learner, network, objective, ways=self.outputs)

    def _as_single_task(self, learner: Learner, adapted: Adapted) -> tuple[Study, MultiTaskModel]:
        """The adapted state as a multi-task model of one task: every learner's head is linear in the features."""
        assert self.table is not None
        target, settings = self.table.target, self.study.meta.learner
        weight, bias = (part[0] for part in learner.linear(self.weights, adapted))
        if target.kind == "binary":  # one logit, that of the second class against the first
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        plain = {name: value.dim() for name, value in learner.network.body.named_parameters()}
        body = {
            name: value[0] if value.dim() > plain.get(name, 1) else value  # 1: statistics of a normalisation
            for name, value in learner.body(self.weights, adapted).items()
        }
        study = self.study.single_task(target.task)
        inserts = getattr(settings, "adapts", "all")
        if inserts == "lora":
            body = merged(body)
        if inserts == "adapters":
            study = _with_adapters(study, settings.rank)  # type: ignore[union-attr]  # it has adapters
        model = build_model(study, self.shape[0], [target])
        assert isinstance(model.sharing, HardSharing)
        whole = model.sharing.encoder.state_dict()
        if any(name.endswith(STATISTICS) and name not in body for name in whole):
            raise RunError(
                "model.encoder.normalisation: the adapted network normalises by the batch at hand, so its predictions "
                "for a row would depend on the other rows; meta-train with 'layer' or 'none', or with "
                "meta.learner.per_step_norm, to save a model"
            )
        model.sharing.encoder.load_state_dict(whole | body)
        model.heads.linear.load_state_dict({"weight": weight, "bias": bias})
        return study, model.eval()


def _with_adapters(study: Study, rank: int) -> Study:
    """The study of a model whose encoder has adapters.

    Raises:
        RunError: for an encoder of the user's.
    """
    encoder = study.model.encoder
    if not isinstance(encoder, MLP):
        raise RunError(
            f"meta.learner.adapts: a model with adapters in '{encoder.kind}' cannot be saved; meta-train with 'lora', "
            "'head' or 'all'"
        )
    options = encoder.model_dump() | {"rank": rank}
    made = f"{mlp_with_adapters.__module__}:{mlp_with_adapters.__name__}"
    return study.with_values({"model.encoder": {"kind": made, "options": options}})
