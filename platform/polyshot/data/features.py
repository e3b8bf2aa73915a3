"""Input columns as numbers: cleaned, imputed and standardised by statistics of the training rows alone.

`prepare` fits a `Features` on the training rows; it is saved with the model and turns the rows to predict into the same
numbers. It never sees a target, and nothing of it is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.data.columns import (
    as_booleans,
    as_dates,
    as_numbers,
    as_texts,
    distinct_values,
    infer_kind,
    require_columns,
    text_of,
    with_text_names,
)
from polyshot.data.images import ImageReading
from polyshot.data.inputs import InputLayout
from polyshot.data.text import TokenReading, as_strings, embeddings, vectoriser
from polyshot.errors import DataError, ResourceError, RunError, did_you_mean
from polyshot.study import Study
from polyshot.study.data import BagOfWords, ColumnKind, Images, SentenceEncoder, TextFeatures, TfIdf

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

MAX_CATEGORIES = 64  # outputs of one categorical column; the rarest beyond share one
MANY_TEXTS = 20  # texts that may all be distinct: beyond, a column of mostly distinct texts is left out
TRUSTED_TYPES = ["numpy.dtype"]  # beyond what skops trusts itself
STATE_FILE, KINDS_FILE = "features.skops", "features.json"
ENCODER_FOLDER = "encoder"  # of a trained encoder of text, without its weights


def feature_columns(table: pd.DataFrame, study: Study) -> list[str]:
    """The study's input columns: `data.features`, by default all but targets, group and split; without `data.ignore`.

    Raises:
        DataError: when the study names a column that the table lacks, or no column is left.
    """
    data, targets = study.data, study.targets
    for name, columns in targets.items():
        require_columns(table, columns, f"tasks.{name}")
    require_columns(table, data.features or [], "data.features")
    require_columns(table, data.ignore, "data.ignore")
    require_columns(table, list(data.columns), "data.columns")
    require_columns(table, list(data.text), "data.text")
    require_columns(table, list(data.images), "data.images")
    require_columns(table, [data.group] if data.group else [], "data.group")
    require_columns(table, [data.split.column] if data.split.column else [], "data.split.column")
    left_out = {*data.ignore, *(column for columns in targets.values() for column in columns)}
    wanted = data.features
    if wanted is None:
        wanted = [name for name in table.columns if name not in (data.group, data.split.column)]
    inputs = [name for name in dict.fromkeys(wanted) if name not in left_out]
    if not inputs:
        raise DataError("data: no feature column is left beside targets, group and ignored ones; ignore fewer columns")
    return inputs


class Features:
    """A fitted reading of a table's input columns.

    Numeric columns are imputed by the median and standardised. Categorical ones are one-hot: missing is a category of
    its own; where there are more than 64, the rarest share 'other'; one that was not seen in training is 'other', or
    all zeros where there is none. Booleans are 0 and 1, imputed by the more frequent. Dates become days since 1970,
    year, month and day of the week, each standardised. A numeric, boolean or date column with missing values in the
    training rows gets one more output, 1 where it was missing. Texts are read as `data.text` says (see `data.text`).
    Behind all of these follow the tokens of texts and the bytes of images that an encoder reads.

    Attributes:
        columns: the input columns that are used.
        kinds: the kind of each column that was fitted.
        blank: those of them that are not used: they count as missing in every row.
        names: the outputs, [F].
        layout: what stands where in them.
        notes: one sentence for each column that was left out, and why.
    """

    def __init__(
        self,
        kinds: Mapping[str, ColumnKind],
        transformer: ColumnTransformer,
        notes: Sequence[str],
        blank: Sequence[str] = (),
        encoders: Mapping[str, SentenceEncoder] | None = None,
        tokens: Mapping[str, TokenReading] | None = None,
        images: Mapping[str, ImageReading] | None = None,
    ):
        """`encoders`, `tokens`, `images`: what reads columns without scikit-learn."""
        self.kinds = dict(kinds)
        self.blank = list(blank)
        self.columns = [name for name in self.kinds if name not in self.blank]
        self.notes = list(notes)
        self._transformer = transformer
        self._encoders = dict(encoders or {})
        self._tokens = dict(tokens or {})
        self._images = dict(images or {})
        numbers = list(self._output_names())
        self.layout = InputLayout(
            len(numbers),
            tuple(reading.place(name) for name, reading in self._tokens.items()),
            tuple(reading.place(name) for name, reading in self._images.items()),
        )
        self.names = numbers + [output for name, reading in self._media.items() for output in reading.names(name)]

    # --- fitting and transforming ------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame,
        columns: Sequence[str],
        overrides: Mapping[str, ColumnKind],
        text: Mapping[str, TextFeatures] | None = None,
        tokens: Mapping[str, TokenReading] | None = None,
        images: Mapping[str, ImageReading] | None = None,
    ) -> Features:
        """Fit on `table`, which must hold the training rows only.

        Args:
            overrides: kinds of columns that are not to be inferred.
            text: how columns of text are read; those of the kind that are not named, by TF-IDF.
            tokens: columns of text that are read as tokens, and how.
            images: columns of images, and how they are read.

        Raises:
            DataError: for a value that does not fit its column's kind, or when no column is left.
        """
        texts = dict(text or {})
        overrides = {
            **overrides,
            **dict.fromkeys([*texts, *(tokens or {})], "text"),
            **dict.fromkeys(images or {}, "image"),
        }
        kinds: dict[str, ColumnKind] = {}
        notes = []
        for name in columns:
            kind = overrides.get(name) or infer_kind(table[name])
            reason = reason_to_leave_out(table[name], kind, chosen=name in overrides)
            if reason is None and kind is not None:
                kinds[name] = kind
            else:
                notes.append(f"The column '{name}' is left out of the features: {reason}.")
        if not kinds:
            raise DataError(f"data: no feature column is left. {' '.join(notes)}")
        tokens = {name: reading for name, reading in (tokens or {}).items() if name in kinds}
        images = {name: reading.fit(table[name]) for name, reading in (images or {}).items() if name in kinds}
        words = [name for name, kind in kinds.items() if kind == "text" and name not in tokens]
        read = {name: texts.get(name, TfIdf()) for name in words}
        encoders = {name: settings for name, settings in read.items() if isinstance(settings, SentenceEncoder)}
        inputs = _inputs(table, kinds, {*tokens, *images})
        transformer = _transformer(inputs, kinds, read)
        transformer.fit(inputs)
        return cls(kinds, transformer, notes, encoders=encoders, tokens=tokens, images=images)

    def transform(self, table: pd.DataFrame) -> NDArray[np.float32]:
        """The rows as numbers [N, F]. Columns that were not trained with are ignored.

        Raises:
            DataError: for a column that is absent, or a value that does not fit its column's kind.
        """
        table = with_text_names(table, "the table")
        absent = [name for name in self.columns if name not in table.columns]
        if absent:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise DataError(
                f"the table has no column '{absent[0]}'{more}, which the model was trained with; add it, empty if its "
                f"values are unknown.{did_you_mean(absent[0], table.columns)}"
            )
        if not len(table):
            return np.empty((0, len(self.names)), dtype=np.float32)
        table = table.assign(**dict.fromkeys(self.blank, np.nan))
        with np.errstate(over="ignore"):
            inputs = _inputs(table, self.kinds, self._media)
            outputs: NDArray[np.float32] = self._transformer.transform(inputs).astype(np.float32)
        embedded = [
            embeddings(settings, as_strings(table[name]), f"data.text.{name}")
            for name, settings in self._encoders.items()
        ]
        outputs = np.concatenate([outputs, *embedded], axis=1)
        if not np.isfinite(outputs).all():
            name = self.names[int(np.argmin(np.isfinite(outputs).all(axis=0)))]
            raise DataError(f"the column '{name}' holds numbers too large for float32 once standardised; correct them")
        media = [reading.read(table[name]) for name, reading in self._media.items()]
        return np.concatenate([outputs, *media], axis=1) if media else outputs

    def blanking(self, columns: Sequence[str]) -> Features:
        """The same reading with some columns that count as missing in every row, whether a table has them or not."""
        return self._but(blank=columns)

    def labelling(self, words: Mapping[str, int]) -> Features:
        """The same reading for tasks that label the words of some columns of tokens, so many at most."""
        tokens = {name: reading.labelling(words.get(name, 0)) for name, reading in self._tokens.items()}
        return self._but(tokens=tokens)

    def _but(self, **changes: Any) -> Features:
        same = {"blank": self.blank, "encoders": self._encoders, "tokens": self._tokens, "images": self._images}
        return Features(self.kinds, self._transformer, self.notes, **(same | changes))

    @property
    def _media(self) -> dict[str, TokenReading | ImageReading]:
        return {**self._tokens, **self._images}

    def _output_names(self) -> Iterator[str]:
        labels = _input_labels(self.kinds)
        for block, transformer, inputs in self._transformer.transformers_:
            match block:
                case "missing":
                    yield from (
                        f"{list(self.kinds)[_position(inputs[index])]} is missing" for index in transformer.features_
                    )
                case "categorical":
                    rare_of = transformer.infrequent_categories_ if transformer.max_categories else [None] * len(inputs)
                    for key, categories, rare in zip(inputs, transformer.categories_, rare_of, strict=True):
                        kept = categories if rare is None else [c for c in categories if not _is_among(c, rare)]
                        yield from (f"{labels[key]} is missing" if c != c else f"{labels[key]}={c}" for c in kept)
                        yield from [] if rare is None else [f"{labels[key]}=other"]
                case "numeric" | "boolean":
                    yield from (labels[key] for key in inputs)
                case _:
                    if isinstance(inputs, str):  # the words of one column
                        yield from (f"{labels[inputs]}: {word}" for word in transformer.get_feature_names_out())
        for name, settings in self._encoders.items():
            width = embeddings(settings, np.array([""], dtype=object), f"data.text.{name}").shape[1]
            yield from (f"{name}: {place}" for place in range(width))

    # --- keeping -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write two files into `folder`, which is made when it is not there."""
        import skops.io  # imports all of scikit-learn: not before it is needed, and never in a trial's worker

        folder.mkdir(parents=True, exist_ok=True)
        skops.io.dump(self._transformer, folder / STATE_FILE)
        encoders = {name: settings.model_dump() for name, settings in self._encoders.items()}
        tokens = {name: [reading.max_tokens, reading.words] for name, reading in self._tokens.items()}
        images = {
            name: {"settings": reading.settings.model_dump(), "means": reading.means, "deviations": reading.deviations}
            for name, reading in self._images.items()
        }
        state = {
            "kinds": self.kinds,
            "notes": self.notes,
            "blank": self.blank,
            "encoders": encoders,
            "tokens": tokens,
            "images": images,
        }
        for reading in self._tokens.values():  # all of one encoder
            reading.save(folder / ENCODER_FOLDER)
        text = json.dumps(state, indent=2, ensure_ascii=False)
        (folder / KINDS_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Features:
        """What `save` wrote.

        Raises:
            RunError: when the files are not there, or are not what `save` writes.
        """
        import skops.io

        try:
            state = json.loads((folder / KINDS_FILE).read_text(encoding="utf-8"))
            transformer = skops.io.load(folder / STATE_FILE, trusted=TRUSTED_TYPES)
            encoders = {name: SentenceEncoder(**values) for name, values in state.get("encoders", {}).items()}
            encoder = str((folder / ENCODER_FOLDER).resolve())
            tokens = {name: TokenReading(encoder, *sizes) for name, sizes in state.get("tokens", {}).items()}
            images = {
                name: ImageReading(Images(**kept["settings"]), Path(), kept["means"], kept["deviations"])
                for name, kept in state.get("images", {}).items()
            }
            return cls(state["kinds"], transformer, state["notes"], state.get("blank", ()), encoders, tokens, images)
        except (DataError, ResourceError):  # of an encoder that is not there
            raise
        except Exception as error:  # a damaged file can fail anywhere in JSON, zip, skops or scikit-learn
            raise RunError(
                f"{folder}: the model's features cannot be read ({type(error).__name__}: {error}); save the model anew"
            ) from error


# --- which columns are used ------------------------------------------------------------------------------------------


def reason_to_leave_out(column: pd.Series, kind: ColumnKind | None, *, chosen: bool) -> str | None:
    """Why a column cannot or should not be learnt from, or None; `chosen`: the user gave its kind."""
    if kind is None:
        return f"its values ({column.dtype}) are neither numbers, text, booleans nor dates; convert them"
    if column.isna().all():
        return "it is empty in all training rows"
    if kind in ("text", "image"):
        return None
    distinct = distinct_values(column, f"the column '{column.name}'")
    if distinct == 1 and not column.isna().any():
        return f"all training rows have the same value, {text_of(column.iloc[0])!r}"
    if kind == "categorical" and not chosen and is_mostly_distinct(distinct, int(column.notna().sum())):
        return (
            f"{distinct} of its {int(column.notna().sum())} texts are distinct, as in names and identifiers; "
            "give its kind in data.columns to keep it, 'text' if they are sentences"
        )
    return None


def is_mostly_distinct(distinct: int, count: int) -> bool:
    """Whether texts name rows (names, identifiers, free text) rather than categories."""
    return distinct > MANY_TEXTS and distinct > count / 2


# --- the transformer -------------------------------------------------------------------------------------------------
# Its inputs are named by position ('3', '3 year'), since names of the user's may collide with those of date parts.

DATE_PARTS = ("days", "year", "month", "weekday")


def _input_labels(kinds: Mapping[str, ColumnKind]) -> dict[str, str]:
    """The user's words for each input of the transformer."""
    labels: dict[str, str] = {}
    for position, (name, kind) in enumerate(kinds.items()):
        if kind == "date":
            labels |= {f"{position} {part}": f"{name} {part}" for part in DATE_PARTS}
        else:
            labels[str(position)] = name
    return labels


def _position(key: str) -> int:
    return int(key.partition(" ")[0])


def _inputs(table: pd.DataFrame, kinds: Mapping[str, ColumnKind], media: Collection[str]) -> pd.DataFrame:
    inputs: dict[str, NDArray[np.float64] | pd.Series] = {}
    for position, (name, kind) in enumerate(kinds.items()):
        if name in media:  # nothing is fitted to it; scikit-learn wants one column at least
            inputs[str(position)] = np.zeros(len(table))
            continue
        column, place = table[name], f"the column '{name}'"
        match kind:
            case "numeric":
                inputs[str(position)] = as_numbers(column, place)
            case "boolean":
                inputs[str(position)] = as_booleans(column, place)
            case "categorical":
                inputs[str(position)] = pd.Series(as_texts(column, place), dtype=object)
            case "text":
                inputs[str(position)] = pd.Series(as_strings(column), dtype=object)
            case "date":
                parts = _date_parts(as_dates(column, place))
                inputs |= {f"{position} {part}": values for part, values in parts.items()}
    return pd.DataFrame(inputs)


def _date_parts(dates: pd.Series) -> dict[str, NDArray[np.float64]]:
    seconds = (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    parts = [seconds / 86400, dates.dt.year, dates.dt.month, dates.dt.day_of_week]
    return {name: part.to_numpy(dtype=np.float64) for name, part in zip(DATE_PARTS, parts, strict=True)}


def _transformer(
    inputs: pd.DataFrame, kinds: Mapping[str, ColumnKind], texts: Mapping[str, TextFeatures]
) -> ColumnTransformer:
    def of(*wanted: ColumnKind) -> list[str]:
        return [key for key in inputs.columns if list(kinds.values())[_position(key)] in wanted]

    # Here, because training needs none of it: workers, who are sent tensors, start in two thirds of the time.
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    # Of a date's parts one tells whether it is missing.
    may_be_missing = [key for key in of("numeric", "boolean", "date") if key.partition(" ")[2] in ("", DATE_PARTS[0])]
    # scikit-learn counts categories in Python, value by value: it is asked to only where some may be too many.
    some_have_many = any(inputs[key].nunique(dropna=False) > MAX_CATEGORIES for key in of("categorical"))
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        max_categories=MAX_CATEGORIES if some_have_many else None,
        sparse_output=False,
        dtype=np.float32,
    )
    blocks = [
        ("numeric", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), of("numeric", "date")),
        ("boolean", SimpleImputer(strategy="most_frequent"), of("boolean")),
        ("missing", MissingIndicator(error_on_new=False), may_be_missing),
        ("categorical", one_hot, of("categorical")),
    ]
    words = [
        (
            f"words {position}",
            vectoriser(settings, inputs[str(position)], f"the column '{name}'"),
            str(position),
        )
        for position, name in enumerate(kinds)
        if isinstance(settings := texts.get(name), BagOfWords | TfIdf)
    ]
    return ColumnTransformer([*(block for block in blocks if block[2]), *words], sparse_threshold=0)


def _is_among(category: object, others: Sequence[object]) -> bool:
    """Membership where NaN is equal to itself."""
    return any(category == other or (category != category and other != other) for other in others)
