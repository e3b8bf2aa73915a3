"""A trained model as a folder that predicts: the study, the weights, the fitted features and targets.

Written by the verbs at their end; read by `polyshot predict` and, as a pyfunc model, by MLflow. Loading runs no pickle:
weights are read with `weights_only`, scikit-learn's transformers through skops.
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
from numpy.typing import NDArray

from polyshot.data.features import ENCODER_FOLDER, Features
from polyshot.data.prepare import Prepared
from polyshot.data.targets import Target
from polyshot.data.words import OUTSIDE, holds_lists, words_of
from polyshot.errors import RunError
from polyshot.models.multitask import MultiTaskModel, build_model
from polyshot.study import Study
from polyshot.study.tasks import own_targets
from polyshot.training.loop import TrainingRun
from polyshot.training.metrics import decided_labels, predictions


@dataclass
class SavedModel:
    """A model that predicts from a table of raw rows."""

    study: Study
    model: MultiTaskModel
    features: Features
    targets: Sequence[Target]

    @classmethod
    def load(cls, folder: Path) -> SavedModel:
        """Read a model folder.

        Raises:
            RunError: when it is none, or a file of it is missing or damaged.
        """
        try:
            study = Study.load(folder / "study.yaml")
            study = with_encoder(study, str((folder / ENCODER_FOLDER).resolve()))
            targets = [Target.from_dict(target) for target in json.loads((folder / "targets.json").read_text("utf-8"))]
            features = Features.load(folder)
            model = build_model(study, features.layout, targets)
            model.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
        except FileNotFoundError as error:
            raise RunError(f"{folder}: is not a model folder, it has no {Path(error.filename).name}") from error
        except (json.JSONDecodeError, RuntimeError, KeyError) as error:
            raise RunError(f"{folder}: the model is damaged ({error}); train it again") from error
        return cls(study, model.eval(), features, targets)

    @torch.no_grad()
    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Predictions of every task for raw rows, with the table's index.

        A regression task gives a column `<task>` in its own units; a binary one `<task>` (the more probable class) and
        `<task>_probability` (of the positive class); a multiclass one `<task>` and `<task>_probability_<class>` each; a
        multilabel one `<task>_<label>` (1 where it is more probable than not, else 0) and `<task>_probability_<label>`
        each; one of kind tokens `<task>`, the labels of the row's words with spaces between them, `O` for words beyond
        those that the model reads.

        Raises:
            DataError: when a feature's column is missing or holds what it did not hold in training.
        """
        outputs = self.model(torch.from_numpy(self.features.transform(table))).numpy()
        columns: dict[str, Any] = {}
        for target, position in zip(self.targets, self.model.layout.columns, strict=True):
            if target.kind == "tokens":
                columns[target.task] = _labels_of_words(table[target.words], target, outputs, position)
                continue
            predicted = predictions(outputs, target, position)
            match target.kind:
                case "regression":
                    columns[target.task] = predicted
                case "binary":
                    columns[target.task] = target.decode(predicted > 0.5)
                    columns[f"{target.task}_probability"] = predicted
                case "multiclass":
                    columns[target.task] = target.decode(predicted.argmax(1))
                    for name, probability in zip(target.classes or [], predicted.T, strict=True):
                        columns[f"{target.task}_probability_{name}"] = probability
                case "multilabel":
                    labels = own_targets(target.task, self.study.tasks[target.task])
                    for label, probability in zip(labels, predicted.T, strict=True):
                        columns[f"{target.task}_{label}"] = target.decode(probability > 0.5)
                        columns[f"{target.task}_probability_{label}"] = probability
        return pd.DataFrame(columns, index=table.index).infer_objects()


def _labels_of_words(column: pd.Series, target: Target, outputs: NDArray[np.float32], position: slice) -> list[str]:
    """Of each row the labels of its words, with spaces between them."""
    labels = [*map(str, target.classes or []), OUTSIDE]
    decided = decided_labels(outputs, target, position)
    return [
        " ".join([*(labels[label] for label in row[:words]), *[OUTSIDE] * (words - target.places)])
        for row, words in zip(decided, (len(words_of(value)) for value in column), strict=True)
    ]


def save_model(folder: Path, study: Study, prepared: Prepared, run: TrainingRun) -> SavedModel:
    """Write the best epoch's model of `run` to `folder`, with an input example and a signature for MLflow.

    Raises:
        TrainingDivergedError: when the run kept no epoch.
    """
    run.restore_best()
    saved = SavedModel(study, run.model.cpu().eval(), prepared.features, prepared.targets)
    write_model(folder, saved, prepared.example)
    return saved


def with_encoder(study: Study, model: str) -> Study:
    """The study with its encoder of text, if it has one, found at `model` and without weights of its own."""
    tree = study.to_dict()
    encoder = _with_encoder(tree["model"]["encoder"], model)
    if encoder == tree["model"]["encoder"]:
        return study
    return study.with_tree(tree | {"model": tree["model"] | {"encoder": encoder}})


def _with_encoder(section: Any, model: str) -> Any:
    """An encoder's settings, those of encoders within it included."""
    if not isinstance(section, dict):
        return section
    found = {key: _with_encoder(value, model) for key, value in section.items()}
    return found | {"model": model, "pretrained": False} if found.get("kind") == "transformer" else found


def write_model(folder: Path, saved: SavedModel, example: pd.DataFrame) -> None:
    """Write `saved` to `folder`, with `example`, some raw rows, and a signature for MLflow."""
    folder.mkdir(parents=True, exist_ok=True)
    study = with_encoder(saved.study, ENCODER_FOLDER)  # which the features write; the weights are among the model's
    (folder / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
    (folder / "targets.json").write_text(
        json.dumps([target.to_dict() for target in saved.targets], indent=2), encoding="utf-8"
    )
    saved.features.save(folder)
    torch.save({name: value.cpu() for name, value in saved.model.state_dict().items()}, folder / "weights.pt")
    (folder / "input_example.json").write_text(
        example.to_json(orient="split", index=False, date_format="iso"), encoding="utf-8"
    )
    signature = {"inputs": _schema(example), "outputs": _schema(saved.predict(example)), "params": None}
    (folder / "signature.json").write_text(json.dumps(signature, indent=2), encoding="utf-8")


def read_example(folder: Path) -> dict[str, Any]:
    """The first of the raw rows that were written with the model, by column."""
    example = json.loads((folder / "input_example.json").read_text(encoding="utf-8"))
    return dict(zip(example["columns"], example["data"][0], strict=True))


def _schema(table: pd.DataFrame) -> str:
    """The table's columns in the form of MLflow's model signatures (a JSON text in its JSON)."""
    return json.dumps([{**_mlflow_type(column), "name": str(name), "required": True} for name, column in table.items()])


def _mlflow_type(column: pd.Series) -> dict[str, Any]:
    if holds_lists(column):
        return _nested_type(column.dropna().iloc[0])
    if pd.api.types.is_bool_dtype(column):
        return {"type": "boolean"}
    if pd.api.types.is_integer_dtype(column):
        return {"type": "long"}
    if pd.api.types.is_float_dtype(column):
        return {"type": "double"}
    return {"type": "datetime" if pd.api.types.is_datetime64_any_dtype(column) else "string"}


def _nested_type(value: Any) -> dict[str, Any]:
    """Of words, or of an image's pixels."""
    if isinstance(value, list | tuple | np.ndarray):
        return {"type": "array", "items": _nested_type(value[0])}
    return {"type": "string" if isinstance(value, str) else "long"}


def _load_pyfunc(path: str) -> Any:
    """The entry that MLflow calls to load a logged model."""
    return SavedModel.load(Path(path))
