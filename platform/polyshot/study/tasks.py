"""`tasks`: what is predicted, each by its kind."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from polyshot.study.data import Source


class TaskSection(Source):
    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Task weight; weights are normalised so that they sum to 1."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Rows of this task in a batch, where `training.sampling` is of tasks; by default all."
    )
    sampling_weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="How often it is drawn, relative to others, by `weighted` sampling."
    )
    learning_rate_factor: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Of the learning rate, for the parameters that only this task has."
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that a task of this kind may choose."""
        return get_args(type(self).model_fields["metric"].annotation)


class SingleTargetTask(TaskSection):
    target: str | None = Field(None, description="The target's column; by default the task's name.")


class RegressionTask(SingleTargetTask):
    """A numeric target; standardised inside, reported in its own units."""

    kind: Literal["regression"]
    loss: Literal["mse", "mae", "huber"] = "mse"
    metric: Literal["rmse", "mae", "r2"] = "rmse"


class BinaryTask(SingleTargetTask):
    """Two classes; `positive` names the one whose probability is predicted (by default the later in sorted order)."""

    kind: Literal["binary"]
    positive: str | int | float | bool | None = None
    loss: Literal["cross_entropy"] = "cross_entropy"
    metric: Literal["roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "precision", "recall"] = (
        "roc_auc"
    )


class MulticlassTask(SingleTargetTask):
    """Three classes or more."""

    kind: Literal["multiclass"]
    loss: Literal["cross_entropy"] = "cross_entropy"
    metric: Literal["accuracy", "balanced_accuracy", "f1"] = "accuracy"


class MultilabelTask(TaskSection):
    """Labels that are each there or not (1 and 0, true and false, yes and no), learnt as one task.

    The loss is the mean over the labels that are known; a metric is the mean over labels of the binary metric.
    """

    kind: Literal["multilabel"]
    target: list[str] = Field(min_length=2, description="The labels' columns.")
    loss: Literal["cross_entropy"] = "cross_entropy"
    metric: Literal["roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "precision", "recall"] = (
        "roc_auc"
    )


class TokensTask(SingleTargetTask):
    """A label for each word of a text: named entities, slots, parts of speech.

    Words and labels are lists, or texts with spaces between them. Labels are in BIO form (`B-city`, `I-city`, `O`): f1,
    precision and recall are of whole entities (CoNLL 2003; as seqeval counts them), accuracy is of words.
    """

    kind: Literal["tokens"]
    words: str = Field(min_length=1, description="The column of words, which `model.encoder` reads.")
    loss: Literal["cross_entropy"] = "cross_entropy"
    metric: Literal["f1", "precision", "recall", "accuracy"] = "f1"


Task = Annotated[
    RegressionTask | BinaryTask | MulticlassTask | MultilabelTask | TokensTask, Field(discriminator="kind")
]


def own_targets(name: str, task: Task, *, like_task: bool = False) -> list[str]:
    """A task's target columns as its table has them, or as they are called beside other tables."""
    if isinstance(task, MultilabelTask):
        return [f"{name}_{label}" for label in task.target] if like_task else task.target
    return [name if like_task else task.target or name]
