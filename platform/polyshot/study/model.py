"""`model`: the encoder and how the tasks share it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from polyshot.study.section import OBJECT_PATH, Fraction, Section, kind_or


class MLP(Section):
    """A multi-layer perceptron: `depth` hidden layers of `width` units."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, description="Units of each hidden layer.")
    depth: int = Field(2, ge=1, description="Number of hidden layers.")
    dropout: Fraction = Field(0.0, description="Share of units dropped while training.")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    normalisation: Literal["none", "batch", "layer"] = "none"


class Transformer(Section):
    """A Hugging Face encoder that is trained on: the mean of its last layer over the tokens of each column of text.

    It reads columns of text, which are cut into its tokens, and nothing else; `mixed` reads other columns as well.
    """

    kind: Literal["transformer"] = "transformer"
    model: str = Field(
        min_length=1,
        description="A folder, a model of the Hugging Face hub, or `package:folder` in an installed one.",
    )
    pretrained: bool = Field(True, description="Its weights; `false` begins with random ones.")
    max_tokens: int = Field(128, ge=3, description="Longer texts are cut.")
    learning_rate_factor: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Of the learning rate, which is that of the heads."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Learning rate of a layer relative to that of the layer above it."
    )
    checkpoint_activations: bool = Field(
        False, description="Compute activations again in the backward pass instead of keeping them: less memory."
    )


class ConvNet(Section):
    """A small convolutional network: each layer halves the image and is twice as wide as the one before."""

    kind: Literal["cnn"] = "cnn"
    width: int = Field(32, ge=1, description="Channels of the first layer.")
    layers: int = Field(3, ge=1, description="Number of convolutions.")
    learning_rate_factor: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Of the learning rate, which is that of the heads."
    )


class TorchvisionModel(Section):
    """A model of torchvision's, such as `resnet18`, without its last layer."""

    kind: Literal["torchvision"]
    model: str = Field("resnet18", min_length=1, description="Its name in torchvision.models.")
    weights: str | None = Field(
        None,
        min_length=1,
        description="A file of its weights (a state_dict, as torch.save writes it); nothing is fetched.",
    )
    small_images: bool | None = Field(
        None, description="A ResNet that does not shrink images at its beginning; by default for up to 64 pixels."
    )
    learning_rate_factor: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Of the learning rate, which is that of the heads."
    )


ImageEncoder = Annotated[
    Annotated[ConvNet, Tag("cnn")] | Annotated[TorchvisionModel, Tag("torchvision")], kind_or("cnn")
]


class Mixed(Section):
    """Columns of several kinds: an encoder for text, one for images, and a perceptron over these and the numbers."""

    kind: Literal["mixed"]
    text: Transformer | None = Field(None, description="For columns of text; without it `data.text` reads them.")
    image: ImageEncoder | None = None
    fusion: MLP = Field(default_factory=lambda: MLP(depth=1))


class CustomEncoder(Section):
    """An encoder of the user's: `package.module:Class`, called with the number of inputs and `options`."""

    kind: str = Field(pattern=OBJECT_PATH)
    options: dict[str, Any] = Field({})


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
    kind_or("hard"),
]


Encoder = Annotated[
    Annotated[MLP, Tag("mlp")]
    | Annotated[Transformer, Tag("transformer")]
    | Annotated[ConvNet, Tag("cnn")]
    | Annotated[TorchvisionModel, Tag("torchvision")]
    | Annotated[Mixed, Tag("mixed")]
    | Annotated[CustomEncoder, Tag("custom")],
    kind_or("mlp"),
]


class Model(Section):
    """encoder × sharing × heads: what is computed from the inputs, which part tasks share, and one head per task."""

    encoder: Encoder = Field(default_factory=MLP)
    sharing: Sharing = Field(default_factory=HardSharing)

    @property
    def text(self) -> Transformer | None:
        """The part of the encoder that reads columns of text as tokens, if it has one."""
        encoder = self.encoder.text if isinstance(self.encoder, Mixed) else self.encoder
        return encoder if isinstance(encoder, Transformer) else None

    @property
    def image(self) -> ConvNet | TorchvisionModel | None:
        """The part of the encoder that reads columns of images, if it has one."""
        encoder = self.encoder.image if isinstance(self.encoder, Mixed) else self.encoder
        return encoder if isinstance(encoder, ConvNet | TorchvisionModel) else None
