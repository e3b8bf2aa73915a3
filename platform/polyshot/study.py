"""What a study is: the schema of the study file, strict and with a default for everything but name, data and tasks.

Every verb takes a `Study`; a trial is a study with other values (`Study.with_values`). This module reads and checks
files; it never reads the data they name and imports neither torch nor Ray nor MLflow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from polyshot.errors import Problem, StudyError, did_you_mean
from polyshot.study_file import Key, dotted, key_path, nearest_line, parse_yaml, section_fields, sentence

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
OBJECT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"  # package.module:name
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the study: unknown keys are errors, values are never coerced, instances never change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _kind_or(default: str) -> Discriminator:
    """Chooses a section's variant by its `kind`, which may be left out; `package.module:Class` is `custom`."""

    def tag(value: object) -> str:
        kind = value.get("kind", default) if isinstance(value, Mapping) else getattr(value, "kind", default)
        return "custom" if isinstance(kind, str) and ":" in kind else str(kind)

    return Discriminator(tag)


# --- data ------------------------------------------------------------------------------------------------------------


class Split(Section):
    """How rows are divided. With `data.group`, the fractions are of groups and no group straddles two splits."""

    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="Fraction of rows for validation.")
    test: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="Fraction of rows for the final test.")
    stratify: bool | str | list[str] = Field(
        True,
        description="Keep class proportions equal over the splits (where there is no `data.group`): of the column that "
        "is named, of the combinations of several, or, when `true`, of the first classification task.",
    )
    seed: int = Field(0, ge=0, description="Seed of the split; kept apart from the study's so that reseeding keeps it.")

    @model_validator(mode="after")
    def _leave_rows_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation ({self.validation:g}) and test ({self.test:g}) leave nothing to train on; "
                "make their sum less than 1"
            )
        return self


ColumnKind = Literal["numeric", "categorical", "boolean", "date", "text"]


class BagOfWords(Section):
    """How often each of the most frequent words stands in a text."""

    kind: Literal["bag_of_words"]
    max_features: int = Field(2000, ge=1, description="How many words, the most frequent ones.")
    ngrams: int = Field(1, ge=1, description="Up to so many words in a row count as one.")


class TfIdf(Section):
    """The same, with words that few texts have counting more, and all texts of one length."""

    kind: Literal["tfidf"] = "tfidf"
    max_features: int = Field(2000, ge=1, description="How many words, the most frequent ones.")
    ngrams: int = Field(1, ge=1, description="Up to so many words in a row count as one.")


class SentenceEncoder(Section):
    """A pretrained encoder, which stays as it is: the mean of its last layer over a text's tokens."""

    kind: Literal["transformers"]
    model: str = Field(
        min_length=1,
        description="A folder, a model of the Hugging Face hub, or `package:folder` in an installed one.",
    )
    max_tokens: int = Field(128, ge=2, description="Longer texts are cut.")
    batch_size: int = Field(64, ge=1, description="Texts that are encoded at once.")


TextFeatures = Annotated[
    Annotated[BagOfWords, Tag("bag_of_words")]
    | Annotated[TfIdf, Tag("tfidf")]
    | Annotated[SentenceEncoder, Tag("transformers")],
    _kind_or("tfidf"),
]


class Source(Section):
    """Where a table is."""

    source: str | None = Field(
        None,
        min_length=1,
        description="A CSV or Parquet file, a folder or a glob of them (relative to the study file, or an address such "
        "as `s3://bucket/table.parquet`), or `package.module:function` that returns a pandas DataFrame. Every task has "
        "one of its own or shares `data`'s.",
    )
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the source function.")

    @property
    def is_function(self) -> bool:
        return self.source is not None and bool(re.match(OBJECT_PATH, self.source))

    @model_validator(mode="after")
    def _arguments_need_a_function(self) -> Self:
        if self.arguments and not self.is_function:
            raise ValueError("'arguments' are for a source function; remove them or name 'package.module:function'")
        return self


class Data(Source):
    """The table: one row per example, one column per feature or target."""

    features: list[str] | None = Field(
        None, description="Columns to learn from; by default all but targets, `group` and `ignore`."
    )
    ignore: list[str] = Field([], description="Columns to leave out of the features.")
    columns: dict[str, ColumnKind] = Field({}, description="Kinds of columns that should not be inferred.")
    text: dict[str, TextFeatures] = Field(
        {}, description="How columns of text are read; those that `columns` calls text, by default by `tfidf`."
    )
    group: str | None = Field(None, description="A column whose rows stay together in one split (a school, a patient).")
    split: Split = Field(default_factory=Split)


# --- tasks -----------------------------------------------------------------------------------------------------------


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
    metric: Literal["roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1"] = "roc_auc"


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
    metric: Literal["roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1"] = "roc_auc"


Task = Annotated[RegressionTask | BinaryTask | MulticlassTask | MultilabelTask, Field(discriminator="kind")]


# --- model -----------------------------------------------------------------------------------------------------------


class MLP(Section):
    """A multi-layer perceptron: `depth` hidden layers of `width` units."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, description="Units of each hidden layer.")
    depth: int = Field(2, ge=1, description="Number of hidden layers.")
    dropout: Fraction = Field(0.0, description="Share of units dropped while training.")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    normalisation: Literal["none", "batch", "layer"] = "none"


class CustomEncoder(Section):
    """An encoder of the user's: `package.module:Class`, called with the number of inputs and `options`."""

    kind: str = Field(pattern=OBJECT_PATH)
    options: dict[str, Any] = {}


class HardSharing(Section):
    """One encoder for all tasks (Caruana 1993)."""

    kind: Literal["hard"] = "hard"


class SoftSharing(Section):
    """One encoder per task, tied by an L2 penalty between their parameters (Duong 2015)."""

    kind: Literal["soft"]
    strength: float = Field(
        1e-3,
        ge=0,
        allow_inf_nan=False,
        description="Factor of the penalty: the tasks' mean squared distance from their mean parameters.",
    )


class CrossStitchSharing(Section):
    """One encoder per task, whose activations are mixed linearly after every layer (Misra 2016)."""

    kind: Literal["cross_stitch"]
    own_share: float = Field(0.9, ge=0, le=1, description="A task's share of its own activations at the start.")


class HierarchicalSharing(Section):
    """One encoder, with tasks supervised at different depths (Søgaard & Goldberg 2016)."""

    kind: Literal["hierarchical"]
    depths: dict[str, Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="The layer that a task's head reads, from 1; tasks left out read the last."
    )


class GroupedSharing(Section):
    """One encoder for each group of tasks; what `polyshot affinity` proposes and the space `groupings` searches."""

    kind: Literal["grouped"]
    groups: list[Annotated[list[str], Field(min_length=1)]] = Field(
        min_length=1, description="The tasks of each group; every task is in one."
    )


class AttentionSharing(Section):
    """One encoder, and a soft mask per task over the features of each of its layers (MTAN, Liu 2019)."""

    kind: Literal["attention"]


class MMoESharing(Section):
    """Experts, each an encoder, that every task weighs by a gate of its own (Ma 2018)."""

    kind: Literal["mmoe"]
    experts: int = Field(4, ge=1, description="Number of experts.")


class CGCSharing(Section):
    """Experts of all tasks and of each task, with a gate per task over both (Tang 2020)."""

    kind: Literal["cgc"]
    shared_experts: int = Field(1, ge=1, description="Experts of all tasks.")
    task_experts: int = Field(1, ge=1, description="Experts of each task.")


class PLESharing(Section):
    """Levels of CGC, over which the layers of the encoder are divided (Tang 2020)."""

    kind: Literal["ple"]
    levels: int = Field(2, ge=1, description="Number of levels, at most the encoder's layers.")
    shared_experts: int = Field(1, ge=1, description="Experts of all tasks, on every level.")
    task_experts: int = Field(1, ge=1, description="Experts of each task, on every level.")


Sharing = Annotated[
    Annotated[HardSharing, Tag("hard")]
    | Annotated[SoftSharing, Tag("soft")]
    | Annotated[CrossStitchSharing, Tag("cross_stitch")]
    | Annotated[HierarchicalSharing, Tag("hierarchical")]
    | Annotated[GroupedSharing, Tag("grouped")]
    | Annotated[AttentionSharing, Tag("attention")]
    | Annotated[MMoESharing, Tag("mmoe")]
    | Annotated[CGCSharing, Tag("cgc")]
    | Annotated[PLESharing, Tag("ple")],
    _kind_or("hard"),
]


Encoder = Annotated[Annotated[MLP, Tag("mlp")] | Annotated[CustomEncoder, Tag("custom")], _kind_or("mlp")]


class Model(Section):
    """encoder × sharing × heads: what is computed from the inputs, which part tasks share, and one head per task."""

    encoder: Encoder = Field(default_factory=MLP)
    sharing: Sharing = Field(default_factory=HardSharing)


class FixedBalance(Section):
    """The weighted sum of task losses, with the weights of the tasks on the simplex."""

    kind: Literal["fixed"] = "fixed"


class RandomBalance(Section):
    """Random weights for every batch (Lin 2022): what a balancer has to beat."""

    kind: Literal["random"]


class UncertaintyBalance(Section):
    """Weights from learnt noise levels of the tasks (Kendall 2018)."""

    kind: Literal["uncertainty"]


class DWABalance(Section):
    """Dynamic weight average: tasks whose loss falls slowly weigh more (Liu 2019)."""

    kind: Literal["dwa"]
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="Higher is closer to equal weights.")


class GLSBalance(Section):
    """The geometric mean of the losses (Chennupati 2019)."""

    kind: Literal["gls"]


class FAMOBalance(Section):
    """All losses fall at the same relative rate, learnt from the losses alone (Liu 2023)."""

    kind: Literal["famo"]
    learning_rate: float = Field(0.025, gt=0, allow_inf_nan=False, description="Of the task weights' logits.")
    weight_decay: float = Field(1e-3, ge=0, allow_inf_nan=False, description="Of the task weights' logits.")


class STCHBalance(Section):
    """A smooth maximum of the weighted losses (Lin 2024)."""

    kind: Literal["stch"]
    mu: float = Field(0.1, gt=0, allow_inf_nan=False, description="Smoothing μ; smaller is closer to the maximum.")


class IMTLLBalance(Section):
    """Learnt scales that make all losses alike (IMTL-L, Liu 2021)."""

    kind: Literal["imtl_l"]


class GradNormBalance(Section):
    """Loss weights that make tasks train at similar rates, from gradient norms at the last shared layer (Chen 2018)."""

    kind: Literal["gradnorm"]
    alpha: float = Field(1.5, ge=0, allow_inf_nan=False, description="How strongly rates are drawn together (α).")
    learning_rate: float = Field(0.025, gt=0, allow_inf_nan=False, description="Of the loss weights.")


class GradientBalance(Section):
    """What the methods that combine the tasks' gradients have in common."""

    at: Literal["parameters", "features"] = Field(
        "parameters",
        description="Where gradients are compared: at the shared `parameters` (the papers' own), or at the shared "
        "`features`, which is nearly as fast as fixed weights, an approximation, and needs hard sharing.",
    )


class MGDABalance(GradientBalance):
    """The shortest convex combination of the gradients (Désidéri 2012, Sener & Koltun 2018)."""

    kind: Literal["mgda"]
    normalise: Literal["none", "norm", "loss"] = Field("none", description="What gradients are divided by first.")


class PCGradBalance(GradientBalance):
    """Conflicting gradients are projected on each other's normal planes (Yu 2020)."""

    kind: Literal["pcgrad"]


class GradVacBalance(GradientBalance):
    """Pairs of gradients are brought to their usual cosine (Wang 2021)."""

    kind: Literal["gradvac"]
    beta: float = Field(0.5, ge=0, le=1, description="Share of the new cosine in the running mean (β).")


class GradDropBalance(GradientBalance):
    """In each coordinate, gradients of one randomly drawn sign (Chen 2020)."""

    kind: Literal["graddrop"]


class CAGradBalance(GradientBalance):
    """Near the average gradient, what serves the worst-off task best (Liu 2021)."""

    kind: Literal["cagrad"]
    c: float = Field(0.5, ge=0, allow_inf_nan=False, description="How far from the average gradient, in its norm (c).")


class IMTLGBalance(GradientBalance):
    """The direction with equal projections on all gradients (IMTL-G, Liu 2021)."""

    kind: Literal["imtl_g"]


class NashMTLBalance(GradientBalance):
    """The Nash bargaining solution among tasks (Navon 2022)."""

    kind: Literal["nash_mtl"]
    max_norm: float | None = Field(1.0, gt=0, description="Largest norm of the combined gradient; `null` for none.")
    every: int = Field(1, ge=1, description="Steps for which weights are kept.")


class AlignedMTLBalance(GradientBalance):
    """The gradients are made orthogonal before they are summed (Senushkin 2023)."""

    kind: Literal["aligned_mtl"]
    scale: Literal["min", "median", "rmse"] = Field("min", description="Which eigenvalue their length is taken from.")


class UPGradBalance(GradientBalance):
    """Each gradient is projected on the directions that harm no task, then they are summed (Quinton & Rey 2024)."""

    kind: Literal["upgrad"]


class FairGradBalance(GradientBalance):
    """α-fair allocation of the update among tasks (Ban & Ji 2024)."""

    kind: Literal["fairgrad"]
    alpha: float = Field(
        2.0, ge=0, allow_inf_nan=False, description="Fairness α: 0 the average, 1 proportional (Nash), higher fairer."
    )


class DualProjBalance(GradientBalance):
    """The average gradient, projected on the directions that harm no task (Lopez-Paz & Ranzato 2017)."""

    kind: Literal["dualproj"]


class ConFIGBalance(GradientBalance):
    """The direction with equal cosines to all gradients (Liu 2025)."""

    kind: Literal["config"]


Balance = Annotated[
    Annotated[FixedBalance, Tag("fixed")]
    | Annotated[RandomBalance, Tag("random")]
    | Annotated[UncertaintyBalance, Tag("uncertainty")]
    | Annotated[DWABalance, Tag("dwa")]
    | Annotated[GLSBalance, Tag("gls")]
    | Annotated[FAMOBalance, Tag("famo")]
    | Annotated[STCHBalance, Tag("stch")]
    | Annotated[IMTLLBalance, Tag("imtl_l")]
    | Annotated[GradNormBalance, Tag("gradnorm")]
    | Annotated[MGDABalance, Tag("mgda")]
    | Annotated[PCGradBalance, Tag("pcgrad")]
    | Annotated[GradVacBalance, Tag("gradvac")]
    | Annotated[GradDropBalance, Tag("graddrop")]
    | Annotated[CAGradBalance, Tag("cagrad")]
    | Annotated[IMTLGBalance, Tag("imtl_g")]
    | Annotated[NashMTLBalance, Tag("nash_mtl")]
    | Annotated[AlignedMTLBalance, Tag("aligned_mtl")]
    | Annotated[UPGradBalance, Tag("upgrad")]
    | Annotated[FairGradBalance, Tag("fairgrad")]
    | Annotated[DualProjBalance, Tag("dualproj")]
    | Annotated[ConFIGBalance, Tag("config")],
    _kind_or("fixed"),
]


# --- training --------------------------------------------------------------------------------------------------------


class AdamW(Section):
    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)


class SGD(Section):
    kind: Literal["sgd"]
    learning_rate: float = Field(1e-2, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    momentum: Fraction = 0.9


Optimiser = Annotated[Annotated[AdamW, Tag("adamw")] | Annotated[SGD, Tag("sgd")], _kind_or("adamw")]


class Schedule(Section):
    """The learning rate over the whole budget of epochs, after an optional linear warm-up."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: Fraction = Field(0.0, description="Share of all steps during which the rate rises linearly from zero.")


class EarlyStopping(Section):
    patience: int = Field(10, ge=1, description="Epochs without a better validation loss before training stops.")


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
    _kind_or("rows"),
]


class Training(Section):
    """One run's budget and optimisation. The epoch with the best validation loss is the one that is kept."""

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(256, ge=1, description="Rows per update, over all workers together.")
    sampling: Sampling = Field(default_factory=RowSampling)
    optimiser: Optimiser = Field(default_factory=AdamW)
    schedule: Schedule = Field(default_factory=Schedule)
    early_stopping: EarlyStopping | None = Field(default_factory=EarlyStopping, description="`null` trains all epochs.")
    clip_norm: float | None = Field(None, gt=0, description="Largest gradient norm; larger ones are scaled down.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="bfloat16 and float16 are automatic mixed precision (float16 on a GPU only)."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile: pays on long runs only.")
    checkpoint_seconds: float = Field(30.0, ge=0, description="Time between checkpoints, at the end of an epoch.")


class Scale(Section):
    """Where and on how much a run trains."""

    workers: int = Field(1, ge=1, description="Data-parallel workers of one training run.")
    min_workers: int | None = Field(
        None, ge=1, description="Go on with so few where nodes are missing, and with all again when there is room."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: a GPU where there is one.")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of each worker; by default what the model keeps busy here, and one in a Ray worker.",
    )
    engine: Literal["auto", "process", "ray"] = Field(
        "auto", description="`auto`: in this process for one worker, Ray Train for more."
    )
    max_failures: int = Field(2, ge=0, description="Times that a killed worker or trial is restarted.")
    address: str | None = Field(None, description="A Ray cluster's address; by default RAY_ADDRESS, else embedded.")

    @model_validator(mode="after")
    def _workers_agree(self) -> Self:
        if self.engine == "process" and self.workers > 1:
            raise ValueError(f"engine 'process' has one worker, workers is {self.workers}; use engine 'ray' or 'auto'")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) is above workers ({self.workers}); lower it")
        return self


# --- meta-learning ---------------------------------------------------------------------------------------------------


class EncoderNetwork(Section):
    """The study's `model.encoder`, for rows of numbers."""

    kind: Literal["encoder"] = "encoder"


class CNN4(Section):
    """Convolutions that each halve an image, as in the few-shot papers (Vinyals 2016)."""

    kind: Literal["cnn4"]
    width: int = Field(64, ge=1, description="Channels of each convolution.")
    layers: int = Field(4, ge=1, description="Number of convolutions.")
    downsample: Literal["stride", "max_pool"] = Field("stride", description="How they halve the image.")


Network = Annotated[Annotated[EncoderNetwork, Tag("encoder")] | Annotated[CNN4, Tag("cnn4")], _kind_or("encoder")]


class GroupEpisodes(Section):
    """Each value of `data.group` is a task (a school, a patient); the splits of `data` keep groups apart."""

    kind: Literal["groups"] = "groups"
    task: str | None = Field(None, description="Which of the study's tasks is learnt; by default the first.")
    support: int = Field(5, ge=1, description="Rows of a group to adapt to.")
    query: int = Field(15, ge=1, description="Rows of a group that adaptation is trained to serve.")


class ClassEpisodes(Section):
    """Few-shot classification: each task is to tell some classes apart, which are of one split only."""

    kind: Literal["classes"]
    source: str = Field(
        min_length=1,
        description="`omniglot`, or `package.module:function` that returns inputs [R, ...] and their labels [R].",
    )
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the source function.")
    ways: int = Field(5, ge=2, description="Classes of a task.")
    shots: int = Field(1, ge=1, description="Rows of each class to adapt to.")
    query: int = Field(1, ge=1, description="Rows of each class that adaptation is trained to serve.")
    test_query: int = Field(1, ge=1, description="Rows of each class that validation and test tasks are judged by.")
    rotations: bool = Field(False, description="Images turned by 90, 180 and 270 degrees are classes of their own.")
    validation: float | int = Field(0.15, gt=0, description="Classes kept for validation: a fraction, or their number.")
    test: float | int = Field(0.2, gt=0, description="Classes kept for the final test: a fraction, or their number.")
    seed: int = Field(0, ge=0, description="Seed of the split of classes.")


class SinusoidEpisodes(Section):
    """Sine waves of random amplitude and phase (Finn 2017)."""

    kind: Literal["sinusoids"]
    support: int = Field(10, ge=1, description="Points of a wave to adapt to.")
    query: int = Field(10, ge=1, description="Points that adaptation is trained to serve.")
    test_query: int = Field(100, ge=1, description="Points that validation and test waves are judged by.")


MetaEpisodes = Annotated[
    Annotated[GroupEpisodes, Tag("groups")]
    | Annotated[ClassEpisodes, Tag("classes")]
    | Annotated[SinusoidEpisodes, Tag("sinusoids")],
    _kind_or("groups"),
]


class GradientAdaptation(Section):
    """What the learners that adapt by gradient steps have in common."""

    rate: float = Field(
        0.01, gt=0, allow_inf_nan=False, description="Size of a step (α); where it is learnt, at first."
    )
    steps: int = Field(5, ge=1, description="Steps within a task while meta-training.")


class PartialAdaptation(GradientAdaptation):
    """What the learners have in common that can adapt a part of the network, and meta-learn the rest."""

    adapts: Literal["all", "head", "adapters", "lora"] = Field(
        "all",
        description="What a task changes: `all` weights, or the head with nothing else, with adapters behind the "
        "layers (Houlsby 2019) or with low-rank matrices beside their weights (LoRA, Hu 2022).",
    )
    rank: int = Field(4, ge=1, description="Units of an adapter, rank of LoRA's matrices.")


class MAMLLearner(PartialAdaptation):
    """Weights from which a few gradient steps lead far (Finn 2017), with the refinements of MAML++ (Antoniou 2019)."""

    kind: Literal["maml"] = "maml"
    per_step_rates: bool = Field(False, description="A learnt step size for every step and layer (LSLR of MAML++).")
    multi_step_loss: bool = Field(
        False, description="Count the loss after every step, the last one more and more (MSL of MAML++)."
    )
    per_step_norm: bool = Field(
        False,
        description="Batch normalisation with a learnt scale and shift, and statistics of training tasks, for every "
        "step (BNWB and BNRS of MAML++): a row's prediction then does not depend on other rows.",
    )


class FirstOrderMAMLLearner(PartialAdaptation):
    """MAML without the second derivatives (Finn 2017)."""

    kind: Literal["first_order_maml"]


class ANILLearner(GradientAdaptation):
    """MAML that adapts the head only; the body is meta-learnt (Raghu 2020)."""

    kind: Literal["anil"]


class MetaSGDLearner(PartialAdaptation):
    """MAML with a learnt step size for every weight (Li 2017)."""

    kind: Literal["meta_sgd"]


class MetaCurvatureLearner(PartialAdaptation):
    """MAML whose gradients are transformed by learnt matrices, one for each axis of a weight (Park & Oliva 2019)."""

    kind: Literal["meta_curvature"]


class ReptileLearner(GradientAdaptation):
    """Weights drawn towards what tasks make of them (Nichol 2018)."""

    kind: Literal["reptile"]


class ProtoNetLearner(Section):
    """The nearest mean of a class in feature space (Snell 2017); classification only."""

    kind: Literal["protonet"]


class RidgeLearner(Section):
    """Ridge regression on features, solved in closed form (R2D2, Bertinetto 2019)."""

    kind: Literal["ridge"]
    penalty: float = Field(1.0, gt=0, allow_inf_nan=False, description="λ at first; it is learnt.")


MetaLearner = Annotated[
    Annotated[MAMLLearner, Tag("maml")]
    | Annotated[FirstOrderMAMLLearner, Tag("first_order_maml")]
    | Annotated[ANILLearner, Tag("anil")]
    | Annotated[MetaSGDLearner, Tag("meta_sgd")]
    | Annotated[MetaCurvatureLearner, Tag("meta_curvature")]
    | Annotated[ReptileLearner, Tag("reptile")]
    | Annotated[ProtoNetLearner, Tag("protonet")]
    | Annotated[RidgeLearner, Tag("ridge")],
    _kind_or("maml"),
]


class Joint(Section):
    """Multi-task training of the same encoder beside meta-training: all tasks of the study, with a head for each."""

    weight: float = Field(0.3, gt=0, allow_inf_nan=False, description="Of the multi-task loss, added to the meta-loss.")


EPISODES = "episodes"  # what `data` and `tasks` are called where episodes are made of no table


class Meta(Section):
    """Meta-learning: from what tasks and how a model is learnt that adapts to a new task from a few labelled rows."""

    episodes: MetaEpisodes = Field(default_factory=GroupEpisodes)
    network: Network = Field(default_factory=EncoderNetwork)
    start: str | None = Field(
        None,
        description="A run of `polyshot train` on this table, with hard sharing: starts from its encoder.",
    )
    joint: Joint | None = Field(
        None,
        description="Also train the encoder on all of the study's tasks at once, on `training.batch_size` rows of the "
        "training groups each time (episodes of kind `groups`).",
    )
    learner: MetaLearner = Field(default_factory=MAMLLearner)
    engine: Literal["auto", "vectorised", "learn2learn"] = Field(
        "auto",
        description="`vectorised`: all tasks of a batch at once; `learn2learn`: one after another by its own loop; "
        "`auto`: vectorised wherever that can be done.",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="Compile the vectorised engine; `auto`: where the iterations to come repay it."
    )
    iterations: int = Field(10_000, ge=1, description="Updates of the meta-weights.")
    tasks_per_batch: int = Field(16, ge=1, description="Tasks of an update, over all workers together.")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Of Adam on the meta-weights.")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="Of the learning rate, over all iterations.")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of a meta-gradient.")
    validate_every: int = Field(500, ge=1, description="Iterations between two looks at the validation tasks.")
    validation_tasks: int = Field(200, ge=1, description="Validation tasks, the same ones each time.")
    test_tasks: int = Field(600, ge=2, description="Test tasks of the final evaluation.")
    test_steps: int = Field(10, ge=1, description="Steps of the adaptation curve of the final evaluation.")
    early_stopping: EarlyStopping | None = Field(
        None, description="Patience in looks at the validation tasks; `null` trains all iterations."
    )


# --- transfer --------------------------------------------------------------------------------------------------------


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
    guard: bool = Field(True, description="Never give back a model that is worse on validation than no transfer.")

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


# --- search and tracking ---------------------------------------------------------------------------------------------


class Choice(Section):
    """One of the listed values."""

    choice: list[str | int | float | bool | None] = Field(min_length=1)


class Range(Section):
    """A number between `low` and `high`, both included; whole when both are."""

    low: int | float = Field(allow_inf_nan=False)
    high: int | float = Field(allow_inf_nan=False)
    log: bool = Field(False, description="Uniform in the logarithm.")
    step: int | float | None = Field(None, gt=0)

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}); exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low above 0, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("'log' and 'step' exclude each other; remove one")
        return self


def _distribution_tag(value: object) -> str:
    return "choice" if isinstance(value, Choice) or (isinstance(value, Mapping) and "choice" in value) else "range"


Distribution = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Range, Tag("range")], Discriminator(_distribution_tag)
]


class Search(Section):
    """What is searched, for how long and by which method."""

    spaces: list[str] = Field(
        ["task_weights", "optimisation"],
        description="Named search spaces (task_weights, architecture, optimisation, sharing, groupings, sampling, "
        "balancing, meta, transfer) or `package.module:function`.",
    )
    space: dict[str, Distribution] = Field({}, description="Distributions by dotted key of this study.")
    objective: str = Field(
        "improvement",
        description="`improvement` (Δm over single-task baselines) or `task/metric`; on validation. Searches of "
        "meta-learning have their own: the metric of the validation tasks.",
    )
    trials: int | None = Field(20, ge=1, description="Number of trials; `null` for as many as `minutes` allows.")
    minutes: float | None = Field(None, gt=0, description="Time limit of the whole search.")
    sampler: Literal["tpe", "random", "gp", "cmaes", "nsga2", "qmc"] = "tpe"
    scheduler: Literal["asha", "median", "none"] = Field("asha", description="Which trials are stopped early.")
    grace_epochs: int = Field(
        5,
        ge=1,
        description="Epochs (in meta-learning: looks at the validation tasks) that every trial is given before it may "
        "be stopped.",
    )
    concurrency: int | None = Field(None, ge=1, description="Trials at once; by default as many as the CPUs allow.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.trials is None and self.minutes is None:
            raise ValueError("the search never ends; give 'trials', 'minutes' or both")
        if not self.spaces and not self.space:
            raise ValueError("nothing is searched; name a space in 'spaces' or a distribution in 'space'")
        return self


class Tracking(Section):
    """Where runs are recorded. The address comes from here, else MLFLOW_TRACKING_URI, else a SQLite file in storage."""

    uri: str | None = Field(None, description="An MLflow tracking URI.")
    experiment: str | None = Field(None, description="The MLflow experiment; by default the study's name.")
    models: bool = Field(True, description="Log the trained model to MLflow.")


# --- the study -------------------------------------------------------------------------------------------------------


class Study(Section):
    """Several related prediction tasks and everything that is done about them."""

    name: str = Field(pattern=NAME, max_length=100, description="Names the experiment and its folder.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of initialisation, batches and sampling.")
    storage: str = Field(
        "polyshot-runs", min_length=1, description="Folder of runs, models and the local MLflow store (from here)."
    )
    data: Data
    tasks: dict[Annotated[str, Field(pattern=NAME)], Task] = Field(min_length=1)
    model: Model = Field(default_factory=Model)
    balance: Balance = Field(default_factory=FixedBalance)
    training: Training = Field(default_factory=Training)
    scale: Scale = Field(default_factory=Scale)
    meta: Meta = Field(default_factory=Meta)
    transfer: Transfer = Field(default_factory=Transfer)
    search: Search = Field(default_factory=Search)
    tracking: Tracking = Field(default_factory=Tracking)

    _folder: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="before")
    @classmethod
    def _episodes_may_be_the_data(cls, values: Any) -> Any:
        """Episodes that are made of no table stand for `data` and `tasks`, which then may be left out."""
        episodes: Any = values
        for key in ("meta", "episodes", "kind"):
            episodes = episodes.get(key) if isinstance(episodes, Mapping) else None
        kind = {"sinusoids": "regression", "classes": "multiclass"}.get(episodes) if episodes else None
        return {"data": {"source": EPISODES}, "tasks": {EPISODES: {"kind": kind}}, **values} if kind else values

    @field_validator("tasks")
    @classmethod
    def _weights_are_a_simplex(cls, tasks: dict[str, Any]) -> dict[str, Any]:
        if tasks and sum(task.weight for task in tasks.values()) <= 0:
            raise ValueError("task weights sum to 0; give at least one task a weight above 0")
        return tasks

    # --- reading and writing -----------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study file (YAML).

        Raises:
            StudyError: with every mistake in the file, each with its line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StudyError([Problem(str(path), "no such file; give the path of a study file")]) from None
        except IsADirectoryError:
            raise StudyError([Problem(str(path), "is a folder; give the path of a study file in it")]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError([Problem(str(path), f"cannot be read as UTF-8 text ({error})")]) from None
        values, lines = parse_yaml(text, str(path))
        study = cls.from_dict(values, where=lambda key: f"{path}:{nearest_line(lines, key)}")
        study._folder = path.parent.resolve()
        return study

    @classmethod
    def from_dict(cls, values: object, *, where: Callable[[Key], str] | None = None) -> Study:
        """The study that `values` (nested dictionaries) describe.

        `where`, when given, maps a key path to the words that say where it stands in a file.

        Raises:
            StudyError: with every mistake.
        """

        def problem(key: Key, message: str) -> Problem:
            return Problem(" ".join(filter(None, [where(key) if where else "", dotted(key)])), message)

        if not isinstance(values, Mapping):
            raise StudyError([problem((), "a study is a mapping of keys to values, starting with 'name:'")])
        try:
            study = cls.model_validate(values)
        except ValidationError as error:
            mistakes = [(key_path(detail["loc"], values), detail) for detail in error.errors()]
            raise StudyError(
                problem(key, sentence(detail, key, section_fields(cls, key[:-1]))) for key, detail in mistakes
            ) from None
        problems = [problem(key, message) for key, message in _disagreements(study)]
        if problems:
            raise StudyError(problems)
        return study

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The study with every default filled in, as a study file; without the credentials of addresses in it.

        Such a file is kept beside runs and models, and read by others: what it lacks comes from the environment then.
        """
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)
        return re.sub(r"(?<=://)[^/\s?#\"'<>]+@", "", text)

    # --- variations --------------------------------------------------------------------------------------------------

    def with_values(self, values: Mapping[str, Any]) -> Study:
        """This study with other values by dotted key, validated like any other.

        Setting a section's `kind` to another variant resets that section first, so that keys of the old variant do not
        linger.

        Raises:
            StudyError: for an unknown key or a value that does not fit.
        """
        tree = self.to_dict()
        for key in sorted(values, key=lambda key: (not key.endswith(".kind"), key.count("."))):
            *parents, leaf = key.split(".")
            section = tree
            for depth, parent in enumerate(parents):
                if section.get(parent) is None:
                    section[parent] = {}
                section = section[parent]
                if not isinstance(section, dict):
                    place = ".".join(parents[: depth + 1])
                    raise StudyError([Problem(key, f"'{place}' is a value, not a section; it has no '{leaf}'")])
            if leaf == "kind" and section.get("kind") != values[key]:
                section.clear()
            section[leaf] = values[key]
        return self.with_tree(tree)

    def with_tree(self, tree: Mapping[str, Any]) -> Study:
        """The study that `tree`, this one's `to_dict` with other values, describes, in the same folder.

        Raises:
            StudyError: when it is none.
        """
        study = Study.from_dict(tree)
        study._folder = self._folder
        return study

    def single_task(self, task: str) -> Study:
        """The single-task baseline of `task`: the same study with one task and nothing to share or to balance."""
        tree = self.to_dict()
        own = tree["tasks"][task]
        tree["training"] |= {"sampling": {"kind": "rows"}, "batch_size": own["batch_size"] or self.training.batch_size}
        tree["tasks"] = {
            task: own | {"weight": 1.0, "batch_size": None, "sampling_weight": 1.0, "learning_rate_factor": 1.0}
        }
        if own["source"] is not None:
            tree["data"] |= {"source": None, "arguments": {}}
        if own["source"] is None and (columns := self.stratified_by):
            tree["data"]["split"]["stratify"] = columns[0]
        tree["data"]["ignore"] += [
            column for name, targets in self.targets.items() if name != task for column in targets
        ]
        tree["model"]["sharing"] = {"kind": "hard"}
        tree["balance"] = {"kind": "fixed"}
        tree["search"] = Search().model_dump(mode="json")
        tree["meta"] = Meta().model_dump(mode="json")
        tree["transfer"] = Transfer().model_dump(mode="json")
        return self.with_tree(tree)

    def differences(self, other: Study) -> dict[str, Any]:
        """Dotted keys whose value in `other` is not this study's, with the value in `other`."""
        mine, theirs = dict(_flatten(self.to_dict())), dict(_flatten(other.to_dict()))
        return {key: value for key, value in theirs.items() if key not in mine or mine[key] != value}

    def flat(self) -> dict[str, Any]:
        """Every value by dotted key."""
        return dict(_flatten(self.to_dict()))

    def digest(self, *sections: str) -> str:
        """Twelve hexadecimal digits that change when the named sections (by default all) change."""
        tree = self.to_dict()
        chosen = {name: tree[name] for name in sections or tree}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]

    # --- what the parts ask for --------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder that relative data paths start from: the study file's, or the current one."""
        return self._folder

    @property
    def targets(self) -> dict[str, list[str]]:
        """The target columns of each task: one, or those of a multilabel task's labels.

        In a table of its own they are called like the task (see `data.tables`).
        """
        return {name: own_targets(name, task, like_task=task.source is not None) for name, task in self.tasks.items()}

    @property
    def tables(self) -> list[tuple[Source, list[str]]]:
        """The tables that are read, and the tasks that have their labels in each."""
        tables: list[tuple[Source, list[str]]] = []
        for name, task in self.tasks.items():
            source: Source = self.data if task.source is None else task
            place = (source.source, source.arguments)
            same = next((tasks for other, tasks in tables if (other.source, other.arguments) == place), None)
            if same is None:
                tables.append((source, [name]))
            else:
                same.append(name)
        return tables

    @property
    def objects(self) -> dict[str, str]:
        """What the study names as `package.module:name`, which is imported and called, by dotted key."""
        return dict(_objects(self.to_dict()))

    @property
    def stratified_by(self) -> list[list[str]]:
        """The columns whose proportions the splits keep: of each table at most one, or those of one multilabel task."""
        stratify = self.data.split.stratify
        if self.data.group is not None or stratify is False:
            return []
        if not isinstance(stratify, bool):
            return [[stratify] if isinstance(stratify, str) else stratify]
        classified = [
            [name for name in tasks if not isinstance(self.tasks[name], RegressionTask)] for _, tasks in self.tables
        ]
        return [self.targets[names[0]] for names in classified if names]

    @property
    def task_weights(self) -> dict[str, float]:
        """Task weights λ, normalised: Σ λ = 1."""
        total = sum(task.weight for task in self.tasks.values())
        return {name: task.weight / total for name, task in self.tasks.items()}

    @property
    def storage_folder(self) -> Path:
        """Where this study's runs are kept."""
        return Path(self.storage).expanduser().absolute() / self.name


def own_targets(name: str, task: Task, *, like_task: bool = False) -> list[str]:
    """A task's target columns as its table has them, or as they are called beside other tables."""
    if isinstance(task, MultilabelTask):
        return [f"{name}_{label}" for label in task.target] if like_task else task.target
    return [name if like_task else task.target or name]


def json_schema() -> dict[str, Any]:
    """The JSON schema of a study file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


def _disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """What no section can check alone: names that must agree, and the search space against the schema."""
    targets = study.targets
    owners: dict[str, str] = {}
    # A column that is called like a task is that task's.
    for name, columns in sorted(targets.items(), key=lambda item: item[1] != [item[0]]):
        for column in dict.fromkeys(columns):
            owner = owners.setdefault(column, name)
            if columns.count(column) > 1:
                yield ("tasks", name, "target"), f"names '{column}' {columns.count(column)} times; keep one"
            elif owner != name and None in (study.tasks[name].source, study.tasks[owner].source):
                message = f"task '{owner}' has the target column '{column}' too; give each a column of its own"
                yield ("tasks", name), message
            if column in (study.data.features or []):
                word = "the target" if len(columns) == 1 else "a label"
                yield ("data", "features"), f"'{column}' is {word} of task '{name}'; remove it from the features"
    for name, task in study.tasks.items():
        if task.source is None and study.data.source is None:
            yield ("data", "source"), f"is missing, and task '{name}' has no source of its own; name a table"
            break
    if study.data.source is not None and all(task.source is not None for task in study.tasks.values()):
        yield ("data", "source"), "is read by no task, since each has a source of its own; remove it"
    for name in study.data.text:
        if (kind := study.data.columns.get(name, "text")) != "text":
            yield ("data", "text", name), f"data.columns calls the column '{kind}'; remove it from one of both"
    for name, task in study.tasks.items():
        labels = task.target if isinstance(task, MultilabelTask) else []
        if clashing := [label for label in labels if f"{name}_{label}" in study.tasks]:
            message = f"the prediction of its label '{clashing[0]}' is called like the task '{name}_{clashing[0]}'"
            yield ("tasks", name), f"{message}; rename one of the tasks"
    if study.data.group in owners:
        yield ("data", "group"), f"'{study.data.group}' is a target column; group by another column"
    yield from _sharing_disagreements(study)
    episodes = study.meta.episodes
    if isinstance(episodes, GroupEpisodes) and episodes.task is not None and episodes.task not in study.tasks:
        yield ("meta", "episodes", "task"), f"names no task of this study.{did_you_mean(episodes.task, study.tasks)}"
    first = next(iter(study.tasks))
    if study.transfer.per_class and isinstance(study.tasks[first], RegressionTask):
        yield ("transfer", "per_class"), f"task '{first}', the first one, has no classes; remove it"
    sampling, balance = study.training.sampling.kind, study.balance.kind
    if sampling not in WHOLE_BATCHES and balance not in ONE_BY_ONE:
        yield (
            ("training", "sampling", "kind"),
            f"'{sampling}' gives batches of one task each, and balance.kind '{balance}' compares tasks within a batch; "
            "use joint or rows",
        )
    objectives = ["improvement", *(f"{name}/{task.metric}" for name, task in study.tasks.items())]
    if study.search.objective not in objectives:
        yield (
            ("search", "objective"),
            f"must be one of {', '.join(objectives)}, got '{study.search.objective}'."
            + did_you_mean(study.search.objective, objectives),
        )
    known = study.flat()
    without_search = study.to_dict() | {"search": Search().model_dump(mode="json")}
    for key, distribution in study.search.space.items():
        section = key.rpartition(".")[0]
        if not any(name == key or name.startswith(f"{section}.") for name in known):
            yield ("search", "space", key), f"names no key of this study.{did_you_mean(key, known)}"
            continue
        extremes = distribution.choice if isinstance(distribution, Choice) else [distribution.low, distribution.high]
        for value in extremes:
            try:
                Study.from_dict(without_search).with_values({key: value})
            except StudyError as error:
                yield ("search", "space", key), f"the key does not accept {value!r}: {error.problems[0].message}"
                break


# Balancers that weigh each task by itself; the others compare the losses or gradients of a batch's tasks, which must be
# more than one.
ONE_BY_ONE = ("fixed", "random", "uncertainty", "dwa", "imtl_l")
WHOLE_BATCHES = ("rows", "joint")


def _sharing_disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """Tasks and layers that a sharing scheme names and that are not there; custom encoders are checked when built."""
    sharing, encoder = study.model.sharing, study.model.encoder
    layers = encoder.depth if isinstance(encoder, MLP) else None
    if isinstance(sharing, HierarchicalSharing):
        for task, depth in sharing.depths.items():
            place: Key = ("model", "sharing", "depths", task)
            if task not in study.tasks:
                yield place, f"names no task of this study.{did_you_mean(task, study.tasks)}"
            if layers is not None and depth > layers:
                yield place, f"the encoder has {layers} layers, got {depth}; lower it or raise model.encoder.depth"
    if isinstance(sharing, GroupedSharing):
        grouped = [task for group in sharing.groups for task in group]
        place = ("model", "sharing", "groups")
        for task in dict.fromkeys(grouped):
            if task not in study.tasks:
                yield place, f"'{task}' names no task of this study.{did_you_mean(task, study.tasks)}"
            elif grouped.count(task) > 1:
                yield place, f"task '{task}' stands in them {grouped.count(task)} times; keep one"
        for task in study.tasks:
            if task not in grouped:
                yield place, f"task '{task}' is in none of them; add it to one, or give it a group of its own"
    if isinstance(sharing, PLESharing) and layers is not None and sharing.levels > layers:
        yield (
            ("model", "sharing", "levels"),
            f"the encoder's layers are divided over the levels and it has {layers}, got {sharing.levels} levels; "
            "lower model.sharing.levels or raise model.encoder.depth",
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        dotted_key = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and dotted_key not in _FREE_MAPPINGS:
            yield from _flatten(value, f"{dotted_key}.")
        else:
            yield dotted_key, value


def _objects(value: object, *key: str) -> Iterator[tuple[str, str]]:
    """Python objects are named by a `kind`, a `source` or one of `spaces`, also as a choice of the search for one."""
    if isinstance(value, str):
        place = [part for part in ".".join(key).split(".") if part != "choice" and not part.isdigit()]
        if place[-1] in ("kind", "source", "spaces") and re.match(OBJECT_PATH, value):
            yield ".".join(key), value
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from _objects(child, *key, str(name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _objects(child, *key, str(index))


_FREE_MAPPINGS = {"search.space", "data.arguments", "data.columns", "data.text", "model.encoder.options"}
