"""`polyshot compare`: the runs of a study as a table, the best first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polyshot import working_copy
from polyshot.study import Study

if TYPE_CHECKING:
    import pandas as pd

_KINDS = ("train", "search", "trial", "baseline", "seed", "affinity", "meta", "adapt")


def compare(
    study: Study | str | Path, *, storage: str | Path = "polyshot-runs", kind: str | None = None
) -> pd.DataFrame:
    """The runs of a study that MLflow has, best validation improvement first.

    Args:
        study: a study, its file or its name (then looked up in `storage`).
        kind: only runs of this kind: train, search, trial, baseline, seed, affinity, meta or adapt.

    Returns:
        One row per run: what it is, how it ended, its final metrics and the parameters that differ between runs.

    Raises:
        RunError: when MLflow has no such experiment.
    """
    from polyshot.errors import RunError, did_you_mean
    from polyshot.tracking.query import runs_table

    if kind is not None and kind not in _KINDS:
        raise RunError(f"--kind must be one of {', '.join(_KINDS)}, got '{kind}'.{did_you_mean(kind, _KINDS)}")
    if not isinstance(study, Study):
        if str(study).endswith((".yaml", ".yml")):
            study = Study.load(study)
        else:
            storage = working_copy.folder_of(storage)
            working_copy.pull_folder(storage / str(study), "*/study.yaml")
            newest = sorted((storage / str(study)).glob("*/study.yaml"), key=lambda path: path.stat().st_mtime)
            if not newest:
                raise RunError(f"'{study}' is neither a study file nor the name of a study in {storage}")
            study = Study.load(newest[-1])
    table = runs_table(study).reset_index()
    if kind is not None:
        table = table[table["kind"] == kind]
    if "val/improvement" in table:
        table = table.sort_values("val/improvement", ascending=False, na_position="last", kind="stable")
    return _telling(table, study).reset_index(drop=True)


def _telling(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The columns that tell runs apart: what each is, its final chosen metrics, the values of its own."""
    chosen = [f"{name}/{task.metric}" for name, task in study.tasks.items()]
    metrics = [f"{split}/{name}" for split in ("val", "test") for name in ("improvement", *chosen)]
    # Those of meta-learning are called by what is learnt there, which need not be a task of the study.
    meta = table[table["kind"].isin(("meta", "trial"))].dropna(axis=1, how="all")
    metrics = list(dict.fromkeys([*metrics, *(str(name) for name in meta if str(name).startswith(("val/", "test/")))]))
    about = ["run", "kind", "parent", "status", "duration_seconds"]
    values = [
        name for name in table.columns if name in study.flat() and not name.startswith(("search.", "data.ignore"))
    ]
    values += [name for name in table.columns if name.startswith("value/")]  # the last ones of a population's trial
    columns = [name for name in (*about, *metrics, *values) if name in table and table[name].notna().any()]
    return table[[*columns, "run_id"]]
