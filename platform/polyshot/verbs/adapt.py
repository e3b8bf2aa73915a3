"""`polyshot adapt`: a meta-learnt learner on a new task's labelled rows or pictures, saved as a model that predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyshot import working_copy
from polyshot.errors import ResourceError, RunError
from polyshot.run_folder import RunFolder
from polyshot.study import Study
from polyshot.tracking.tracker import Tracker

if TYPE_CHECKING:
    import pandas as pd

    from polyshot.meta.pictures import PictureModel
    from polyshot.meta.saved import SavedLearner
    from polyshot.saved_model import SavedModel

LEARNER = "learner"  # the folder of a meta-learner in its run's


@dataclass(frozen=True)
class AdaptResult:
    """A model of one task, made from a few of its rows.

    Attributes:
        rows: labelled rows, or pictures, that it was made from.
        folder: the run's folder, which holds the model.
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
    """

    rows: int
    folder: Path
    mlflow_id: str | None

    @property
    def model(self) -> SavedModel | PictureModel:
        from polyshot.verbs.predict import load_model

        return load_model(self.folder / "model")


def adapt(
    run: str | Path,
    support: pd.DataFrame | str | Path,
    *,
    steps: int | None = None,
    storage: str | Path = "polyshot-runs",
) -> AdaptResult:
    """Adapt the learner of a meta-learning run to a new task's labelled rows, and save what predicts its others.

    Args:
        run: a run's folder; a study's file, folder or name (its newest meta-learning run).
        support: labelled rows of a new group, or the CSV or Parquet file of them; for a learner of pictures, the folder
            that has a folder of them for each class.
        steps: of gradient descent; by default as many as in meta-training.
        storage: the folder of runs, in which names are looked up.

    Raises:
        RunError: when there is no such run, or it learnt neither from a table nor from pictures.
        DataError: when the rows or pictures cannot be read, or cannot be learnt from.
    """
    found = find_learner(str(run), storage)
    study = Study.load(found / "study.yaml").with_values({"storage": str(found.parents[2])})
    with Tracker.open(study) as tracker:
        from polyshot.meta.saved import SavedLearner

        learner = SavedLearner.load(found)
        rows, write = _adapted(learner, support, steps)
        folder = RunFolder.open(study, "adapt", study.digest(), fresh=True)
        tags = {"polyshot.kind": "adapt", "polyshot.study": study.name, "polyshot.learner": found.parent.name}
        tracked = tracker.start_run(folder.key, key=folder.key, params={"rows": rows, "steps": steps}, tags=tags)
        write(folder.path / "model")
        if study.tracking.models:
            if learner.table is None:
                tracked.log_artifact(folder.path / "model")
            else:
                tracked.log_model(folder.path / "model")
        tracked.end()
    tracker.close()
    folder.state["mlflow_id"] = tracker.mlflow_id(tracked)
    if (missing := folder.close("finished")) is not None:
        raise ResourceError(missing)
    return AdaptResult(rows, folder.path, folder.state["mlflow_id"])


def _adapted(
    learner: SavedLearner, support: pd.DataFrame | str | Path, steps: int | None
) -> tuple[int, Callable[[Path], None]]:
    """How many rows or pictures were learnt from, and what writes the model to a folder."""
    if learner.table is None and isinstance(support, str | Path) and Path(support).is_dir():
        from polyshot.meta.pictures import PictureModel

        model, count = PictureModel.adapt(learner, Path(support), steps)
        return count, model.save
    from polyshot.saved_model import write_model

    if isinstance(support, str | Path):
        from polyshot.data.source import read_path

        support = read_path(str(support), Path.cwd())
    made = learner.adapt_table(support, steps=steps)
    table = learner.table
    assert table is not None
    return int(support[table.target.column].notna().sum()), lambda folder: write_model(folder, made, table.example)


def find_learner(run: str, storage: str | Path) -> Path:
    """The learner's folder that `run` names.

    Raises:
        RunError: when it names none.
    """
    storage = working_copy.folder_of(storage)
    for folder in (Path(run), storage / run):
        working_copy.pull_folder(folder, f"{LEARNER}/*", "study.yaml")
        if (folder / LEARNER).is_dir():
            return folder / LEARNER
    home = Study.load(run).storage_folder if run.endswith((".yaml", ".yml")) else storage / run
    working_copy.pull_folder(home, "meta-*/run.json", f"meta-*/{LEARNER}/*", "meta-*/study.yaml")
    learners = [path for path in home.glob(f"meta-*/{LEARNER}") if path.parent.name.removeprefix("meta-").isdigit()]
    if learners:
        return max(learners, key=lambda path: int(path.parent.name.removeprefix("meta-")))
    raise RunError(
        f"'{run}' is neither the folder of a meta-learning run, nor a study that has one in {storage}; run "
        "`polyshot meta` first"
    )
