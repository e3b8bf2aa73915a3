"""Multi-task learning behind scikit-learn's interface: `MultiTaskRegressor` and `MultiTaskClassifier`.

For pipelines, grid searches and notebooks that are scikit-learn's. They hold arrays and call the training loop that
`polyshot train` calls; they read no files, record no runs and judge nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from polyshot.data.prepare import Examples, TrainingData
from polyshot.data.targets import Target
from polyshot.study import Study
from polyshot.training.loop import TrainingRun
from polyshot.training.metrics import predictions

Floats = NDArray[np.floating]


class _MultiTaskEstimator(MultiOutputMixin, BaseEstimator):
    """What the two have in common: their parameters, and how they are fitted. A subclass encodes labels."""

    def __init__(
        self,
        *,
        sharing: str | Mapping[str, Any] = "hard",
        balance: str | Mapping[str, Any] = "fixed",
        task_weights: Sequence[float] | None = None,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.0,
        epochs: int = 100,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        validation_fraction: float = 0.15,
        patience: int | None = 10,
        values: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.sharing = sharing
        self.balance = balance
        self.task_weights = task_weights
        self.width = width
        self.depth = depth
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.values = values
        self.random_state = random_state

    # --- what a subclass adds ----------------------------------------------------------------------------------------

    @abstractmethod
    def _read(self, y: ArrayLike) -> NDArray[Any]:
        """Labels [N] or [N, T] as an array in which what is missing can be told."""

    @abstractmethod
    def _encode(self, labels: NDArray[Any], known: NDArray[np.bool_], training: NDArray[np.int64]) -> Floats:
        """Labels [N, T] as the loop takes them, anything where they are not `known`; sets what decodes them."""

    @abstractmethod
    def _targets(self) -> list[Target]: ...

    # --- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 - scikit-learn's name
        """Train on numbers X [N, F] and labels y [N] or [N, T]; a label that is missing is masked, its row is not lost.

        Raises:
            ValueError: for inputs or labels that cannot be learnt from.
            StudyError: for parameters that no study can have.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        inputs = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        labels = self._read(y)
        check_consistent_length(inputs, labels)
        self._is_one_column = labels.ndim == 1
        labels = labels.reshape(len(labels), -1)
        self.n_outputs_ = labels.shape[1]
        known = _known(labels)
        if unlabelled := np.flatnonzero(~known.any(0)).tolist():
            raise ValueError(f"y has no label in column {unlabelled[0]}: give it labels or leave it out")

        random = check_random_state(self.random_state)
        training, validation = self._split(known, random)
        encoded = np.where(known, self._encode(labels, known, training), 0.0)
        self.study_ = self._study(int(random.randint(2**31 - 1)))
        self._scaler = StandardScaler().fit(inputs[training])
        scaled = self._scaler.transform(inputs)

        def examples(rows: NDArray[np.int64]) -> Examples:
            features, targets = (torch.from_numpy(values[rows].astype(np.float32)) for values in (scaled, encoded))
            return Examples(features, targets, torch.from_numpy(known[rows]))

        run = TrainingRun(self.study_, TrainingData(examples(training), examples(validation), self._targets()))
        self.history_ = [epoch.metrics for epoch in run.epochs()]
        self.n_iter_ = len(self.history_)
        run.restore_best()
        # In double precision a row's prediction does not depend on which others are predicted with it.
        self._model = run.model.cpu().double().eval()
        return self

    def _split(
        self, known: NDArray[np.bool_], random: np.random.RandomState
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows to train on, and those by which the epoch is chosen: the same ones where there are too few."""
        rows = random.permutation(len(known))
        validation = rows[: int(self.validation_fraction * len(rows))]
        training = np.sort(rows[len(validation) :])
        if not known[validation].any() or not known[training].any(0).all():
            return np.sort(rows), np.sort(rows)
        return training, np.sort(validation)

    def _study(self, seed: int) -> Study:
        weights = [1.0] * self.n_outputs_ if self.task_weights is None else list(self.task_weights)
        if len(weights) != self.n_outputs_:
            raise ValueError(f"task_weights has {len(weights)} weights and y has {self.n_outputs_} columns")
        return Study.from_dict(
            {
                "name": "estimator",
                "seed": seed,
                "data": {"source": "memory"},
                "tasks": {
                    target.task: {"kind": target.kind, "weight": float(weight)} | self._judged(target)
                    for target, weight in zip(self._targets(), weights, strict=True)
                },
                "model": {
                    "encoder": {"width": self.width, "depth": self.depth, "dropout": self.dropout},
                    "sharing": _section(self.sharing),
                },
                "balance": _section(self.balance),
                "training": {
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "optimiser": {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay},
                    "early_stopping": None if self.patience is None else {"patience": self.patience},
                },
            }
        ).with_values(self.values or {})

    def _judged(self, target: Target) -> dict[str, Any]:
        """Metrics of validation that any few rows define."""
        return {"metric": "rmse" if target.kind == "regression" else "accuracy"}

    # --- predicting --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _predictions(self, X: ArrayLike) -> list[Floats]:  # noqa: N803 - as above
        """What `training.metrics.predictions` makes of the model's outputs, for each task."""
        check_is_fitted(self)
        inputs = self._scaler.transform(validate_data(self, X, dtype=np.float64, reset=False))
        outputs = self._model(torch.from_numpy(inputs)).numpy()
        columns = self._model.layout.columns
        return [predictions(outputs, target, own) for target, own in zip(self._targets(), columns, strict=True)]

    def _shaped(self, columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """A column per task, or the only one as labels were given."""
        return columns[0] if self._is_one_column else np.stack(columns, axis=1)

    @abstractmethod
    def predict(self, X: ArrayLike) -> NDArray[Any]: ...  # noqa: N803 - as above

    def _mean_over_tasks(self, metric: Callable[[Any, Any], float], X: ArrayLike, y: ArrayLike) -> float:  # noqa: N803
        """The mean of `metric(labels, predictions)`, of each task on the rows whose label is there."""
        labels, predicted = (table.reshape(len(table), -1) for table in (self._read(y), self.predict(X)))
        known = _known(labels)
        return float(np.mean([metric(labels[rows, task], predicted[rows, task]) for task, rows in enumerate(known.T)]))


class MultiTaskRegressor(RegressorMixin, _MultiTaskEstimator):
    """Several numbers predicted from one table by one network.

    Inputs and labels are standardised. The epoch that is kept is the best one on `validation_fraction` of the rows.

    Args:
        sharing: what tasks share: a kind of the study's `model.sharing`, or the section as a mapping.
        balance: how their losses or gradients are balanced: a kind of `balance`, or the section.
        task_weights: one for each column of y; equal by default.
        width: units of each hidden layer.
        depth: hidden layers.
        dropout: share of units that is dropped while training.
        epochs: at most so many.
        batch_size: rows per update.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        validation_fraction: of the rows, by which the epoch is chosen.
        patience: epochs without a better validation loss before training stops; None trains all of them.
        values: any other values of the study, by dotted key, such as {"training.clip_norm": 1.0}.
        random_state: of initialisation, batches and the validation rows.

    Attributes:
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
        n_outputs_: columns of y.
        study_: the study that was trained.
        history_: the metrics of each epoch.
        n_iter_: epochs that were trained.
    """

    def predict(self, X: ArrayLike) -> Floats:  # noqa: N803 - as above
        """[N, F] → [N] or [N, T], as y was given."""
        return self._shaped(self._predictions(X))

    def _read(self, y: ArrayLike) -> Floats:
        labels: Floats = check_array(
            y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan", input_name="y"
        )
        return labels

    def _encode(self, labels: Floats, known: NDArray[np.bool_], training: NDArray[np.int64]) -> Floats:
        of_training = np.where(known, labels, np.nan)[training]
        self._means = np.nanmean(of_training, axis=0)
        scales = np.nanstd(of_training, axis=0)
        self._scales = np.where(scales > 0, scales, 1.0)  # a constant is predicted as itself
        encoded: Floats = (labels - self._means) / self._scales
        return encoded

    def _targets(self) -> list[Target]:
        return [
            Target(f"task-{place}", "regression", f"task-{place}", mean=float(mean), scale=float(scale))
            for place, (mean, scale) in enumerate(zip(self._means, self._scales, strict=True))
        ]

    def score(self, X: ArrayLike, y: ArrayLike) -> float:  # noqa: N803 - as above
        """The mean of R² over tasks, each on the rows whose label is there."""
        return self._mean_over_tasks(r2_score, X, y)


class MultiTaskClassifier(ClassifierMixin, _MultiTaskEstimator):
    """Several classes predicted from one table by one network.

    Labels may be numbers or texts, different ones in each column; one that is missing is NaN or None. Everything else
    is as in `MultiTaskRegressor`.

    Attributes:
        classes_: those of y in sorted order; for several columns, a list of them.
        n_features_in_, feature_names_in_, n_outputs_, study_, history_, n_iter_: as in `MultiTaskRegressor`.
    """

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803 - as above
        """[N, F] → [N] or [N, T], as y was given."""
        probabilities = self._probabilities(X)
        return self._shaped(
            [classes[of_task.argmax(1)] for classes, of_task in zip(self._classes, probabilities, strict=True)]
        )

    def predict_proba(self, X: ArrayLike) -> Floats | list[Floats]:  # noqa: N803 - as above
        """[N, F] → [N, C], the columns as in `classes_`; for several tasks, a list of them."""
        probabilities = self._probabilities(X)
        return probabilities[0] if self._is_one_column else probabilities

    def _probabilities(self, X: ArrayLike) -> list[Floats]:  # noqa: N803 - as above
        return [
            np.stack([1 - of_task, of_task], axis=1) if of_task.ndim == 1 else of_task
            for of_task in self._predictions(X)
        ]

    @property
    def classes_(self) -> NDArray[Any] | list[NDArray[Any]]:
        check_is_fitted(self)
        return self._classes[0] if self._is_one_column else self._classes

    def _read(self, y: ArrayLike) -> NDArray[Any]:
        labels: NDArray[Any] = check_array(
            y, dtype=None, ensure_2d=False, ensure_all_finite=False, input_name="y", ensure_min_samples=0
        )
        if labels.dtype.kind == "f" and np.isinf(labels).any():
            raise ValueError("Input y contains infinity; correct it or leave it empty")
        return labels

    def _encode(self, labels: NDArray[Any], known: NDArray[np.bool_], training: NDArray[np.int64]) -> Floats:
        del training  # classes are those of all rows
        self._classes = []
        encoded = np.zeros(labels.shape)
        for task, rows in enumerate(known.T):
            column = labels[rows, task]
            check_classification_targets(column)
            if column.dtype.kind == "f":  # whole numbers that stood beside missing ones
                column = column.astype(np.int64)
            classes, encoded[rows, task] = np.unique(column, return_inverse=True)
            if len(classes) < 2:
                raise ValueError(f"y has one class only in column {task}, so there is nothing to learn: {classes[0]!r}")
            self._classes.append(classes)
        return encoded

    def _targets(self) -> list[Target]:
        return [
            Target(
                f"task-{place}",
                "binary" if len(classes) == 2 else "multiclass",
                f"task-{place}",
                classes=list(range(len(classes))),
            )
            for place, classes in enumerate(self._classes)
        ]

    def score(self, X: ArrayLike, y: ArrayLike) -> float:  # noqa: N803 - as above
        """The mean accuracy over tasks, each on the rows whose label is there."""
        return self._mean_over_tasks(lambda labels, predicted: float(np.mean(labels == predicted)), X, y)


def _known(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a label is there: neither NaN nor None."""
    known: NDArray[np.bool_] = pd.notna(labels)
    return known


def _section(given: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": given} if isinstance(given, str) else dict(given)
