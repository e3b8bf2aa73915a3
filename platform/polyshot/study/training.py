"""`training`: optimiser, batches, schedule and when to stop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from polyshot.study.section import Fraction, Section, kind_or

LOSS = "loss"  # what is monitored unless a task's metric is named


class AdamW(Section):
    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)


class SGD(Section):
    kind: Literal["sgd"]
    learning_rate: float = Field(1e-2, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    momentum: Fraction = 0.9


Optimiser = Annotated[Annotated[AdamW, Tag("adamw")] | Annotated[SGD, Tag("sgd")], kind_or("adamw")]


class Schedule(Section):
    """The learning rate over the whole budget of epochs, after an optional linear warm-up."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: Fraction = Field(0.0, description="Share of all steps during which the rate rises linearly from zero.")


class EarlyStopping(Section):
    patience: int = Field(10, ge=1, description="Epochs without a better one on validation before training stops.")


class RowSampling(Section):
    """Every row once an epoch, whichever labels it has."""

    kind: Literal["rows"] = "rows"


class JointSampling(Section):
    """Every batch has rows of every task, each in a batch size of its own; small tasks are gone through repeatedly."""

    kind: Literal["joint"]


class ProportionalSampling(Section):
    """Batches of one task each, as many of a task as it has."""

    kind: Literal["proportional"]


class TemperatureSampling(Section):
    """Batches of one task each, drawn in proportion to n^(1/temperature) (Arivazhagan 2019)."""

    kind: Literal["temperature"]
    temperature: float = Field(
        5.0, ge=1, allow_inf_nan=False, description="1 is proportional to the tasks' sizes; large is uniform."
    )


class UniformSampling(Section):
    """Batches of one task each, equally many of all."""

    kind: Literal["uniform"]


class WeightedSampling(Section):
    """Batches of one task each, in proportion to the tasks' `sampling_weight`."""

    kind: Literal["weighted"]


class RoundRobinSampling(Section):
    """Batches of one task each, in turn."""

    kind: Literal["round_robin"]


class DynamicSampling(Section):
    """Batches of one task each, more of the tasks whose training loss has fallen least since the first epoch."""

    kind: Literal["dynamic"]
    strength: float = Field(1.0, ge=0, allow_inf_nan=False, description="Exponent of that ratio; 0 is uniform.")


Sampling = Annotated[
    Annotated[RowSampling, Tag("rows")]
    | Annotated[JointSampling, Tag("joint")]
    | Annotated[ProportionalSampling, Tag("proportional")]
    | Annotated[TemperatureSampling, Tag("temperature")]
    | Annotated[UniformSampling, Tag("uniform")]
    | Annotated[WeightedSampling, Tag("weighted")]
    | Annotated[RoundRobinSampling, Tag("round_robin")]
    | Annotated[DynamicSampling, Tag("dynamic")],
    kind_or("rows"),
]


class Training(Section):
    """One run's budget and optimisation, and which of its epochs is kept."""

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(256, ge=1, description="Rows per update, over all workers together.")
    steps_per_epoch: int | None = Field(
        None,
        ge=1,
        description="Updates of an epoch, after which the model is validated and may be saved; by default one pass "
        "over the rows. For sampling of kind `rows`; passes go on from one epoch to the next.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Parts that a batch is computed in, one after another, for encoders whose activations for all of "
        "it do not fit; the update is that of the whole batch. For balancers of kind fixed or dwa.",
    )
    sampling: Sampling = Field(default_factory=RowSampling)
    optimiser: Optimiser = Field(default_factory=AdamW)
    schedule: Schedule = Field(default_factory=Schedule)
    early_stopping: EarlyStopping | None = Field(default_factory=EarlyStopping, description="`null` trains all epochs.")
    monitor: str = Field(
        LOSS,
        min_length=1,
        description="The epoch that is best by it on validation is kept, and early stopping waits for a better one: "
        "`loss`, the weighted loss, or a task's metric, such as `slots/f1`.",
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest gradient norm; larger ones are scaled down.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="bfloat16 and float16 are automatic mixed precision (float16 on a GPU only)."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile: pays on long runs only.")
    checkpoint_seconds: float = Field(30.0, ge=0, description="Time between checkpoints, at the end of an epoch.")
