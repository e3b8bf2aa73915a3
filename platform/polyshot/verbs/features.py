"""`polyshot features`: what a trained model computes for rows in one of its layers, all of it or what matters most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polyshot.errors import DataError, Problem, StudyError
from polyshot.verbs.predict import find_model

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


def features(
    run: str | Path,
    rows: pd.DataFrame | str | Path,
    *,
    layer: str = "representation",
    pca: int | None = None,
    mutual_information: int | None = None,
    target: str | None = None,
    storage: str | Path = "polyshot-runs",
) -> pd.DataFrame:
    """The outputs of a layer for each row, one column per unit, with the table's index.

    Args:
        run: as `predict`.
        rows: a table, or the CSV or Parquet file of one.
        layer: `representation` (what the heads read), or the name of a module of the model.
        pca: keep so many principal components of these rows, as `pc0` …, in place of the units.
        mutual_information: keep so many units, those that tell most about the column `target` of the rows, the best
            first.
        storage: the folder of runs, in which names and ids are looked up.

    Raises:
        StudyError: when what is kept is asked for in two ways, or without what it needs.
        RunError: when there is no such run or layer.
        DataError: when the rows cannot be read, or lack a column.
    """
    if pca is not None and mutual_information is not None:
        raise StudyError([Problem("--pca", "and --mutual-information exclude each other; give one of them")])
    if (mutual_information is None) != (target is None):
        raise StudyError([Problem("--mutual-information", "needs --target, the column to tell about, and the reverse")])
    folder = find_model(str(run), storage)
    import pandas as pd

    from polyshot.data.source import read_path
    from polyshot.saved_model import SavedModel
    from polyshot.transfer.extraction import hidden_features
    from polyshot.transfer.selection import by_mutual_information, principal_components

    if isinstance(rows, str | Path):
        rows = read_path(str(rows), Path.cwd())
    if not len(rows):
        raise DataError("the rows: there are none; give a table with rows")
    values = hidden_features(SavedModel.load(folder), rows, layer)
    names = [f"h{place}" for place in range(values.shape[1])]
    if pca is not None:
        values = principal_components(values, pca)(values)
        names = [f"pc{place}" for place in range(values.shape[1])]
    if mutual_information is not None and target is not None:
        chosen = by_mutual_information(values, [_labels(rows, target)], mutual_information)
        values, names = values[:, chosen], [names[place] for place in chosen]
    return pd.DataFrame(values, rows.index, names)


def _labels(rows: pd.DataFrame, column: str) -> tuple[NDArray[np.floating], bool]:
    """The column as numbers [N], NaN where missing, and whether they are classes."""
    import numpy as np
    import pandas as pd

    from polyshot.data.columns import as_numbers, as_texts, require_columns
    from polyshot.data.infer import task_kind

    require_columns(rows, [column], "--target")
    kind = task_kind(rows[column])
    if kind is None:
        raise DataError(f"--target: the column '{column}' cannot be told about; name one with numbers or two classes")
    if kind == "regression":
        return as_numbers(rows[column], f"--target: the column '{column}'"), False
    codes, _ = pd.factorize(as_texts(rows[column], f"--target: the column '{column}'"))
    return np.where(codes < 0, np.nan, codes.astype(float)), True
