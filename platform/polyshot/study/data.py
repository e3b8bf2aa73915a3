"""`data`: the tables, their columns, how text becomes numbers, and how rows are split."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Tag, model_validator

from polyshot.study.section import OBJECT_PATH, Section, kind_or


class Split(Section):
    """How rows are divided. With `data.group`, the fractions are of groups and no group straddles two splits."""

    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="Fraction of rows for validation.")
    test: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="Fraction of rows for the final test.")
    stratify: bool | str | list[str] = Field(
        True,
        description="Keep class proportions equal over the splits (where there is no `data.group`): of the column that "
        "is named, of the combinations of several, or, when `true`, of the first classification task.",
    )
    column: str | None = Field(
        None,
        description="A column that says `train`, `validation` or `test` of each row, where the split is given; nothing "
        "else here counts then.",
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


ColumnKind = Literal["numeric", "categorical", "boolean", "date", "text", "image"]


class Images(Section):
    """How a column of images is read (paths of files, or arrays of bytes), and what is done to them in training."""

    size: int = Field(32, ge=2, multiple_of=2, description="Height and width that they are resized to, in pixels.")
    channels: Literal[1, 3] = Field(3, description="3 for colours, 1 for shades of grey.")
    normalise: Literal["data", "imagenet"] = Field(
        "data", description="By means and deviations of the training rows' pixels, or of ImageNet's, for its weights."
    )
    flip: bool = Field(False, description="Mirror half of the images of each training batch.")
    shift: int = Field(0, ge=0, description="Shift each image of a training batch by up to so many pixels.")


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
    kind_or("tfidf"),
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
    images: dict[str, Images] = Field(
        {}, description="How columns of images are read; those that `columns` calls image, by default as said below."
    )
    group: str | None = Field(None, description="A column whose rows stay together in one split (a school, a patient).")
    split: Split = Field(default_factory=Split)
