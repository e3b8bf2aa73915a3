"""The study file that `polyshot init` writes for a table: tasks, kinds and identifiers guessed, and commented.

It looks at names and values of columns only. What it writes can be trained as it stands; its comments say what was
guessed, so that a person can correct it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel

from polyshot.data.columns import as_texts, infer_kind, require_columns, with_text_names
from polyshot.data.features import is_mostly_distinct, reason_to_leave_out
from polyshot.data.targets import MAX_CLASSES, class_values
from polyshot.errors import DataError
from polyshot.study.data import ColumnKind, Split
from polyshot.study.search import Search
from polyshot.study.tasks import BinaryTask, MulticlassTask, RegressionTask
from polyshot.study.training import Training

TaskKind = Literal["regression", "binary", "multiclass"]
TASKS: dict[TaskKind, type[BaseModel]] = {
    "regression": RegressionTask,
    "binary": BinaryTask,
    "multiclass": MulticlassTask,
}

# The first pattern that matches some usable column gives the targets; without any, the last usable column is it.
TARGET_NAMES = [
    r"(targets?|labels?|outcomes?|response|y)([_. -].*|\d+)?|.*[_. -](target|label|outcome|response)",
    r"class|scores?|.*[_. -]score|score[_. -].*",
]
IDENTIFIER_NAMES = (
    r"row[_. -]?(names?|ids?|numbers?)|index|unnamed.*|u?u?id|guid|.*[_. -](id|uuid|key|no|number)|id[_. -].*"
)
FEW_VALUES = 10  # whole numbers with no more distinct values than this are classes, if each is frequent
SENTENCE_WORDS = 4  # texts that are all distinct are names or identifiers where half of them have fewer words
FEW_IDENTIFIERS = 20  # a column called '... id' with no more distinct values than this is a category
LISTED_COLUMNS = 100


def study_text(table: pd.DataFrame, source: str, name: str, targets: list[str] | None = None) -> str:
    """A commented study file for `table`, which `source` (as written in the file) names.

    `name` becomes the study's name, with what names may not hold replaced by '-'. `targets` chooses the target columns;
    by default they are guessed from names such as target, label, outcome, y, class and score, else the last column.

    Raises:
        DataError: when a target is not in the table or cannot be one, none can be guessed, or no feature is left.
    """
    table = with_text_names(table, source)
    identifiers = [column for column in table.columns if _is_identifier(table[column])]
    kinds = _chosen_tasks(table, targets) if targets else _guessed_tasks(table.drop(columns=identifiers))
    identifiers = [column for column in identifiers if column not in kinds]
    features = [column for column in table.columns if column not in kinds and column not in identifiers]
    if all(_reason_to_leave_out(table[column]) for column in features):
        raise DataError(
            f"{source}: no column is left to learn from beside {', '.join(kinds)}; give a table with feature columns"
        )
    lines = [
        f"# A study of {json.dumps(source, ensure_ascii=False)}: {len(table)} rows, {table.shape[1]} columns.",
        "# Tasks and kinds are guesses from the table: correct them, then",
        "#   polyshot check study.yaml    names every mistake and shows all keys with their defaults",
        "#   polyshot train study.yaml    trains the tasks together and each alone, and compares",
        "#   polyshot search study.yaml   searches task weights, architecture and optimisation",
        f"name: {_yaml(_study_name(name))}",
        "",
        "data:",
        *_data_lines(table, source, identifiers, features),
        "",
        "tasks:",
        *(line for column, kind in kinds.items() for line in _task_lines(table[column], kind, list(kinds))),
        "",
        *_other_lines(),
    ]
    return "\n".join(lines) + "\n"


# --- guesses ---------------------------------------------------------------------------------------------------------


def task_kind(column: pd.Series) -> TaskKind | None:
    """The kind of task that the column could be the target of, or None."""
    kind = infer_kind(column)
    if kind is None or kind == "date":
        return None
    labels = column.dropna()
    sizes = labels.value_counts()
    if len(sizes) < 2:
        return None
    if kind == "numeric":
        numbers = labels.to_numpy(dtype=np.float64)
        are_classes = len(sizes) <= FEW_VALUES and len(labels) >= 5 * len(sizes) and not np.mod(numbers, 1).any()
        if not are_classes or not np.isfinite(numbers).all():
            return "regression"
    if len(sizes) == 2:
        return "binary"
    return None if len(sizes) > MAX_CLASSES or is_mostly_distinct(len(sizes), len(labels)) else "multiclass"


def _chosen_tasks(table: pd.DataFrame, targets: Sequence[str]) -> dict[str, TaskKind]:
    require_columns(table, targets, "targets")
    kinds = {}
    for target in dict.fromkeys(targets):
        kind = task_kind(table[target])
        if kind is None:
            raise DataError(
                f"targets: the column '{target}' cannot be a target "
                f"({_described(table[target]) or 'no values'}); choose one with numbers, or with two classes or more"
            )
        kinds[target] = kind
    return kinds


def _guessed_tasks(table: pd.DataFrame) -> dict[str, TaskKind]:
    candidates = [column for column in table.columns if _can_split(table[column]) and not _is_called_identifier(column)]
    usable = {column: kind for column in candidates if (kind := task_kind(table[column]))}
    for pattern in TARGET_NAMES:
        named = {column: kind for column, kind in usable.items() if re.fullmatch(pattern, column, re.IGNORECASE)}
        if named:
            return named
    if not usable:
        raise DataError("no column of the table can be a target (numbers, or classes of three rows and more); add one")
    last = list(usable)[-1]
    return {last: usable[last]}


def _can_split(labels: pd.Series) -> bool:
    """Whether training, validation and test can each have a label, and each of two classes."""
    if infer_kind(labels) is None:
        return False
    sizes = labels.value_counts()
    return bool(sizes.sum() >= 3 and (len(sizes) > 2 or sizes.min() >= 3))


def _is_called_identifier(name: str) -> bool:
    return re.fullmatch(IDENTIFIER_NAMES, name, re.IGNORECASE) is not None


def _kind_of_feature(column: pd.Series) -> ColumnKind | None:
    """As `infer_kind`, but texts that are nearly all distinct and have several words are not names but sentences."""
    kind = infer_kind(column)
    if kind != "categorical" or not is_mostly_distinct(int(column.nunique()), int(column.notna().sum())):
        return kind
    words = column.dropna().map(str).str.split().map(len)
    return "text" if words.median() >= SENTENCE_WORDS else kind


def _is_identifier(column: pd.Series) -> bool:
    kind, count = _kind_of_feature(column), int(column.notna().sum())
    named = _is_called_identifier(str(column.name))
    if kind == "categorical":
        distinct = int(column.nunique())
        return is_mostly_distinct(distinct, count) or (named and distinct > FEW_IDENTIFIERS)
    if kind != "numeric" or not pd.api.types.is_integer_dtype(column.dtype):
        return False
    distinct = int(column.nunique())
    counts_rows = distinct == len(column) > 1 and int(column.max()) - int(column.min()) == len(column) - 1
    return counts_rows or (named and distinct > FEW_IDENTIFIERS)


def _reason_to_leave_out(column: pd.Series) -> str | None:
    return reason_to_leave_out(column, _kind_of_feature(column), chosen=False)


# --- lines -----------------------------------------------------------------------------------------------------------


def _data_lines(table: pd.DataFrame, source: str, identifiers: Sequence[str], features: Sequence[str]) -> Iterator[str]:
    yield f"  source: {_yaml(source)}"
    if identifiers:
        yield f"  ignore: [{', '.join(map(_yaml, identifiers))}]  # look like identifiers, which do not carry over"
    split = Split()
    for column in identifiers:
        if 3 <= table[column].nunique() < len(table) / 1.2:
            yield f"  # group: {_yaml(column)}  # rows with the same value stay together in one split"
    yield f"  # split: {{validation: {split.validation}, test: {split.test}}}"
    texts = [column for column in features if _kind_of_feature(table[column]) == "text"]
    if texts:
        yield "  columns:  # to learn from; remove the '#' before a line to say its kind yourself"
        yield from (f"    {_yaml(column)}: text  # sentences; see data.text for how they are read" for column in texts)
    else:
        yield "  # Columns to learn from. Remove the '#' before 'columns:' and before a line to say its kind yourself:"
        yield "  # columns:"
    for column in [column for column in features if column not in texts][:LISTED_COLUMNS]:
        reason = _reason_to_leave_out(table[column])
        kind = infer_kind(table[column]) or "categorical"
        yield f"  #   {_yaml(column)}: {kind}  # {f'left out: {reason}' if reason else _described(table[column])}"
    if len(features) > LISTED_COLUMNS:
        yield f"  #   ... and {len(features) - LISTED_COLUMNS} more"


def _task_lines(column: pd.Series, kind: TaskKind, targets: Sequence[str]) -> Iterator[str]:
    task = _task_name(str(column.name), targets)
    yield f"  {_yaml(task)}:"
    yield f"    kind: {kind}  # {_described(column)}"
    if task != column.name:
        yield f"    target: {_yaml(str(column.name))}"
    if kind == "multiclass" and infer_kind(column) == "numeric":
        yield "    # kind: regression  # instead, if the numbers are quantities"
    if kind == "binary":
        positive = class_values(column, task)[-1]
        shown = _yaml(positive) if isinstance(positive, str) else str(positive).lower()
        yield f"    # positive: {shown}  # the class whose probability is predicted"
    yield f"    # metric: {TASKS[kind].model_fields['metric'].default}"
    yield "    # weight: 1.0  # weights are normalised over the tasks"


def _other_lines() -> Iterator[str]:
    training, search = Training(), Search()
    yield "# training:"
    yield f"#   epochs: {training.epochs}"
    yield f"#   batch_size: {training.batch_size}"
    yield f"#   optimiser: {{kind: adamw, learning_rate: {training.optimiser.learning_rate:g}}}"
    yield "# search:"
    yield f"#   spaces: [{', '.join(search.spaces)}]"
    yield f"#   trials: {search.trials}"
    yield "#   minutes: 10"


def _described(column: pd.Series) -> str:
    missing = float(column.isna().mean())
    kind = infer_kind(column)
    values = ""
    if kind in ("categorical", "boolean"):
        values = f"{pd.Series(as_texts(column, str(column.name))).nunique()} values"
    elif kind in ("numeric", "date"):
        values = f"{_shown(column.min())} to {_shown(column.max())}"
    return ", ".join(filter(None, [values, f"{100 * missing:.2g} % missing" if missing else ""]))


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float | int | np.number) else str(value)


def _study_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:100] or "study"


def _task_name(target: str, targets: Sequence[str]) -> str:
    """The target as a task's name, numbered where two targets would have one name."""
    names = [_study_name(other) for other in targets]
    place = list(targets).index(target)
    repeated = names[:place].count(names[place])
    return f"{names[place]}-{repeated + 1}" if repeated else names[place]


def _yaml(text: str) -> str:
    """The text as a YAML scalar, quoted unless it can be read as nothing else."""
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*(:[A-Za-z_]\w*)?", text) and text.lower() not in ("true", "false", "null")
    return text if plain else json.dumps(text, ensure_ascii=False)
