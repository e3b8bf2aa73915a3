"""`transfer`: the source, the methods, and by what they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from polyshot.study.section import NAME, Section


class TransferMethod(Section):
    """What all methods of transfer have in common."""

    learning_rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Of this method; by default `training.optimiser.learning_rate`."
    )


class FineTuning(TransferMethod):
    """The source's encoder, trained on: all or its top layers, at once or layer by layer (Howard & Ruder 2018)."""

    kind: Literal["fine_tuning"] = "fine_tuning"
    layers: int | None = Field(None, ge=1, description="How many layers are trained, from the top; `null` for all.")
    unfreeze_every: int | None = Field(
        None, ge=1, description="Gradual unfreezing: epochs until the next layer, from the top, is trained as well."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Learning rate of a layer relative to that of the layer above it."
    )


class LinearProbe(TransferMethod):
    """The source's encoder as it is; only the heads are trained."""

    kind: Literal["linear_probe"]


class NearestNeighbours(TransferMethod):
    """Labels of the nearest rows in the source's feature space; nothing is trained."""

    kind: Literal["knn"]
    neighbours: int = Field(5, ge=1, description="How many rows are asked.")


class L2SP(TransferMethod):
    """Fine-tuning that is drawn back to the source's weights (Li 2018)."""

    kind: Literal["l2_sp"]
    strength: float = Field(0.01, ge=0, allow_inf_nan=False, description="Pull to the source's weights (α).")
    head_strength: float = Field(0.01, ge=0, allow_inf_nan=False, description="Pull of new heads to zero (β).")


class Adapters(TransferMethod):
    """Small residual bottlenecks after each layer of the source's encoder, which stays as it is (Houlsby 2019)."""

    kind: Literal["adapters"]
    width: int = Field(16, ge=1, description="Units of a bottleneck.")


class LoRA(TransferMethod):
    """Updates of low rank for the linear layers of the source's encoder (Hu 2022)."""

    kind: Literal["lora"]
    rank: int = Field(8, ge=1, description="Rank of an update.")
    alpha: int = Field(16, ge=1, description="An update is scaled by alpha / rank.")


class Distillation(TransferMethod):
    """The study's own model learns from labels and from a larger one (Hinton 2015, Romero 2015)."""

    kind: Literal["distillation"]
    teacher: str | None = Field(None, description="A run or study file like `transfer.source`; by default that one.")
    logits: float = Field(1.0, ge=0, allow_inf_nan=False, description="Weight of what the teacher predicts.")
    features: float = Field(1.0, ge=0, allow_inf_nan=False, description="Weight of the teacher's representation.")
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="Softens predicted probabilities.")

    @model_validator(mode="after")
    def _teaches_something(self) -> Self:
        if not self.logits and not self.features:
            raise ValueError("the teacher teaches nothing; give logits or features a weight above 0")
        return self


class FeatureMapping(TransferMethod):
    """The source's features, each weighed by a learnt share: φ(h) = h ⊙ softmax(w)."""

    kind: Literal["feature_mapping"]


class SelectiveTransfer(TransferMethod):
    """Only some of the source's features: their principal components, or those that tell most about the labels."""

    kind: Literal["selective"]
    by: Literal["pca", "mutual_information"] = "mutual_information"
    features: int = Field(32, ge=1, description="How many are transferred, at most.")
    layers: Literal["last", "all", "best"] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = Field(
        "last",
        description="The layers whose features are chosen from: the `last`, `all`, the `best` one by LogME on the "
        "labelled rows, or numbers, from 1 at the bottom.",
    )


class SourceRows(TransferMethod):
    """What the methods that go on learning from the source's rows have in common."""

    target_share: float = Field(
        0.5, gt=0, lt=1, description="Share of the target's rows in an epoch, for which they are repeated."
    )
    source_rows: int | None = Field(None, ge=1, description="Rows of the source, drawn at random; `null` for all.")


class MixedTraining(SourceRows):
    """Source and target rows in every batch; a task that both have is one task."""

    kind: Literal["mixed"]


class DANN(SourceRows):
    """Mixed training with features from which an adversary cannot tell source from target (Ganin 2016)."""

    kind: Literal["dann"]
    strength: float = Field(0.1, ge=0, allow_inf_nan=False, description="Weight of the adversary's loss.")
    width: int = Field(64, ge=1, description="Hidden units of the adversary.")


class DeepCORAL(SourceRows):
    """Mixed training with features whose covariances agree (Sun & Saenko 2016)."""

    kind: Literal["deep_coral"]
    strength: float = Field(1.0, ge=0, allow_inf_nan=False, description="Weight of their distance.")


class MMD(SourceRows):
    """Mixed training with features of equal distributions, by maximum mean discrepancy (Long 2015)."""

    kind: Literal["mmd"]
    strength: float = Field(0.1, ge=0, allow_inf_nan=False, description="Weight of the discrepancy.")


class GradientGuided(SourceRows):
    """Mixed training in which source gradients lose what points against the target's (Yu 2020, one-sided)."""

    kind: Literal["gradient_guided"]


class MetaLearned(TransferMethod):
    """Fine-tuning from what a meta-learnt learner adapts to on the labelled rows."""

    kind: Literal["meta_learned"]
    run: str = Field(min_length=1, description="A run of `polyshot meta`: its folder, or its study's file or name.")
    steps: int | None = Field(None, ge=0, description="Steps of the learner's own adaptation; as in meta-training.")


TransferKind = Annotated[
    FineTuning
    | LinearProbe
    | NearestNeighbours
    | L2SP
    | Adapters
    | LoRA
    | Distillation
    | FeatureMapping
    | SelectiveTransfer
    | MixedTraining
    | DANN
    | DeepCORAL
    | MMD
    | GradientGuided
    | MetaLearned,
    Field(discriminator="kind"),
]


class Transfer(Section):
    """What was learned elsewhere, moved to this study's tasks by several methods, each compared with no transfer."""

    source: str | None = Field(
        None,
        min_length=1,
        description="What to transfer from: a run, as `polyshot predict` finds it, or a study file (relative to this "
        "one), which is trained first where no run of it is there.",
    )
    source_task: str | None = Field(
        None,
        description="A task of the source: what its head reads is transferred, where not all tasks read the same "
        "(sharing of another kind than `hard`). By default the first of this study's tasks that it has, or its first.",
    )
    methods: dict[Annotated[str, Field(pattern=NAME)], TransferKind] = Field(
        {"fine_tuning": FineTuning(), "linear_probe": LinearProbe(kind="linear_probe")},
        min_length=1,
        description="Methods by name; a name that is a kind needs no `kind`.",
    )
    budgets: list[Annotated[int, Field(ge=1)] | Literal["all"]] = Field(
        [10, 30, 100, "all"], min_length=1, description="Labelled training rows that a method is given."
    )
    per_class: bool = Field(False, description="Budgets are of each class of the first task (shots), not in all.")
    seeds: int = Field(3, ge=1, description="Repetitions, each with other weights, batches and labelled rows.")
    folds: int | None = Field(
        None,
        ge=3,
        description="Cross-validation: the rows (or groups) in so many parts, each of which is tested on once, "
        "validated on once and else trained on, in place of the fractions of `data.split`. One repetition is all.",
    )
    guard: bool = Field(True, description="Never give back a model that is worse on validation than no transfer.")

    @property
    def runs(self) -> dict[str, str]:
        """What is named of other studies, runs or study files, by dotted key."""
        named = {"transfer.source": self.source}
        for name, method in self.methods.items():
            if isinstance(method, Distillation):
                named[f"transfer.methods.{name}.teacher"] = method.teacher
            if isinstance(method, MetaLearned):
                named[f"transfer.methods.{name}.run"] = method.run
        return {key: run for key, run in named.items() if run is not None}

    @field_validator("methods", mode="before")
    @classmethod
    def _names_may_be_kinds(cls, methods: Any) -> Any:
        if not isinstance(methods, Mapping):
            return methods
        return {
            name: {"kind": name, **(values or {})} if isinstance(values, Mapping | None) else values
            for name, values in methods.items()
        }

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if SCRATCH in self.methods:
            raise ValueError(f"'{SCRATCH}' is the name of training without transfer; rename the method")
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"budgets {self.budgets} name one twice; remove it")
        return self


SCRATCH = "scratch"  # training without transfer, which every method is compared with
SEARCHED = "searched"  # the method that a search of transfer makes up
