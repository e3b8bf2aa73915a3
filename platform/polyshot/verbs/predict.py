"""`polyshot predict`: a trained model on new rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polyshot import working_copy
from polyshot.run_folder import latest_run, tracked_run
from polyshot.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from polyshot.meta.pictures import PictureModel
    from polyshot.saved_model import SavedModel


def predict(run: str | Path, rows: pd.DataFrame | str | Path, *, storage: str | Path = "polyshot-runs") -> pd.DataFrame:
    """Predictions of every task for each row (see `SavedModel.predict` for the columns).

    Args:
        run: a model's or run's folder; a study's file, folder or name (its newest run); or an MLflow run id.
        rows: a table, or the CSV or Parquet file of one. For a model of pictures a folder of them, or a table of their
            paths (see `meta.pictures.PictureModel.predict`).
        storage: the folder of runs, in which names and ids are looked up.

    Raises:
        RunError: when there is no such run.
        DataError: when the rows cannot be read or lack a feature's column.
    """
    folder = find_model(str(run), storage)
    model = load_model(folder)
    from polyshot.meta.pictures import PictureModel

    if isinstance(model, PictureModel):
        return model.predict(rows)
    if isinstance(rows, str | Path):
        from polyshot.data.source import read_path

        rows = read_path(str(rows), Path.cwd())
    return model.predict(rows)


def load_model(folder: Path) -> SavedModel | PictureModel:
    """The model in a folder, whether of a table or of pictures.

    Raises:
        RunError: when it is no model's folder, or a file of it is missing or damaged.
    """
    from polyshot.meta.pictures import DESCRIPTION, PictureModel
    from polyshot.saved_model import SavedModel

    return (PictureModel if (folder / DESCRIPTION).exists() else SavedModel).load(folder)


def find_model(run: str, storage: str | Path) -> Path:
    """The model folder that `run` names.

    Raises:
        RunError: when it names none.
    """
    storage = working_copy.folder_of(storage)
    if run.endswith((".yaml", ".yml")):
        return latest_run(Study.load(run).storage_folder) / "model"
    for folder in (Path(run), storage / run):
        working_copy.pull_folder(folder, "weights.pt", "model/weights.pt", "*-*/run.json")
        if (folder / "weights.pt").exists():
            working_copy.pull_folder(folder)
            return folder
        if (folder / "model" / "weights.pt").exists():
            working_copy.pull_folder(folder)
            return folder / "model"
        if folder.is_dir() and any(folder.glob("*-*/run.json")):
            return latest_run(folder) / "model"
    return tracked_run(run, storage) / "model"
