"""`meta`: episodes, the learner and the network of meta-learning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from polyshot.study.section import Section, kind_or
from polyshot.study.training import EarlyStopping


class EncoderNetwork(Section):
    """The study's `model.encoder`, for rows of numbers."""

    kind: Literal["encoder"] = "encoder"


class CNN4(Section):
    """Convolutions that each halve an image, as in the few-shot papers (Vinyals 2016)."""

    kind: Literal["cnn4"]
    width: int = Field(64, ge=1, description="Channels of each convolution.")
    layers: int = Field(4, ge=1, description="Number of convolutions.")
    downsample: Literal["stride", "max_pool"] = Field("stride", description="How they halve the image.")


Network = Annotated[Annotated[EncoderNetwork, Tag("encoder")] | Annotated[CNN4, Tag("cnn4")], kind_or("encoder")]


class GroupEpisodes(Section):
    """Each value of `data.group` is a task (a school, a patient); the splits of `data` keep groups apart."""

    kind: Literal["groups"] = "groups"
    task: str | None = Field(None, description="Which of the study's tasks is learnt; by default the first.")
    support: int = Field(5, ge=1, description="Rows of a group to adapt to.")
    query: int = Field(15, ge=1, description="Rows of a group that adaptation is trained to serve.")


class Distortion(Section):
    """How far each picture of a training task is distorted at the most; how far it is, is drawn uniformly."""

    degrees: float = Field(0.0, ge=0, le=180, description="Turned to either side.")
    stretch: float = Field(
        0.0, ge=0, lt=1, description="Made larger or smaller in each direction, and slanted, as a fraction of its size."
    )
    shift: float = Field(0.0, ge=0, allow_inf_nan=False, description="Shifted in each direction, in pixels.")


class ClassEpisodes(Section):
    """Few-shot classification: each task is to tell some classes apart, which are of one split only."""

    kind: Literal["classes"]
    source: str = Field(
        min_length=1,
        description="`omniglot`, or `package.module:function` that returns inputs [R, ...] and their labels [R].",
    )
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the source function.")
    ways: int = Field(5, ge=2, description="Classes of a task.")
    train_ways: int | None = Field(
        None,
        ge=2,
        description="Classes of a training task, where they are others than `ways`: prototypes are learnt best with "
        "many (Snell 2017). For `protonet` and `ridge`, and learners with a `zero_head`.",
    )
    shots: int = Field(1, ge=1, description="Rows of each class to adapt to.")
    query: int = Field(1, ge=1, description="Rows of each class that adaptation is trained to serve.")
    test_query: int = Field(1, ge=1, description="Rows of each class that validation and test tasks are judged by.")
    rotations: bool = Field(False, description="Images turned by 90, 180 and 270 degrees are classes of their own.")
    distort: Distortion | None = Field(None, description="Distort the pictures of training tasks at random.")
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
    kind_or("groups"),
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


class ZeroHead(Section):
    """Of the learners whose head need not be meta-learnt."""

    zero_head: bool = Field(
        False,
        description="Begin every task with a head of zeros in place of a learnt one (Kao 2022): the order of classes "
        "then means nothing, and there may be any number of them.",
    )


class MAMLLearner(ZeroHead, PartialAdaptation):
    """Weights from which a few gradient steps lead far (Finn 2017), with the refinements of MAML++ (Antoniou 2019)."""

    kind: Literal["maml"] = "maml"
    per_step_rates: bool = Field(False, description="A learnt step size for every step and layer (LSLR of MAML++).")
    multi_step_loss: bool | Literal["equal"] = Field(
        False,
        description="Count the loss after every step: the last one more and more (true: MSL of MAML++), or all alike "
        "to the end (`equal`), for what is used after few and after many.",
    )
    per_step_norm: bool = Field(
        False,
        description="Batch normalisation with a learnt scale and shift, and statistics of training tasks, for every "
        "step (BNWB and BNRS of MAML++): a row's prediction then does not depend on other rows.",
    )


class FirstOrderMAMLLearner(ZeroHead, PartialAdaptation):
    """MAML without the second derivatives (Finn 2017)."""

    kind: Literal["first_order_maml"]


class ANILLearner(ZeroHead, GradientAdaptation):
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
    kind_or("maml"),
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
