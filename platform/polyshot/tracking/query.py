"""The runs of a study as a table, read from MLflow.

Called by `polyshot compare` and from Python; it writes nothing and creates no store.
"""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from polyshot.errors import TrackingError
from polyshot.study import Study
from polyshot.tracking.store import Store, resolve, without_credentials

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

HUGE = 1.7976931348623157e308  # MLflow's SQL stores hold this for infinity
PAGE = 1000


def runs_table(study: Study) -> pd.DataFrame:
    """Every run of the study's experiment, indexed by MLflow's run id.

    Columns: run (its name), kind, parent (its name, empty for none), status, start (UTC), duration_seconds (NaN while
    it runs); then the parameters of which there are different values, then the metrics (the last value of each).
    Sorted by parent, then start.

    Raises:
        TrackingError: when the store cannot be used, or the experiment has no runs yet.
    """
    import pandas as pd

    store = resolve(study)
    runs = _runs(store)
    names = {run.info.run_id: run.info.run_name for run in runs}
    table = pd.DataFrame(
        [
            {
                "run": run.info.run_name,
                "kind": run.data.tags.get("polyshot.kind", ""),
                "parent": names.get(run.data.tags.get("mlflow.parentRunId", ""), ""),
                "status": run.info.status,
                "start": run.info.start_time,
                "duration_seconds": (run.info.end_time or float("nan")) / 1000 - run.info.start_time / 1000,
            }
            for run in runs
        ],
        index=pd.Index(list(names), name="run_id"),
    )
    table["start"] = pd.to_datetime(table["start"], unit="ms", utc=True)
    params = pd.DataFrame([run.data.params for run in runs], index=table.index)
    params = params.loc[:, params.nunique() > 1].apply(_numbers)
    metrics = pd.DataFrame([run.data.metrics for run in runs], index=table.index)
    metrics = metrics.replace({HUGE: float("inf"), -HUGE: float("-inf")})
    columns = [table, *(part[sorted(part.columns)] for part in (params, metrics))]
    return pd.concat(columns, axis=1).sort_values(["parent", "start"], kind="stable")


def best_values(study: Study, experiment: str, key: str) -> dict[str, Any]:
    """The best values, by dotted key, of the newest search in another experiment of the study's store.

    Args:
        key: where the study names the experiment.

    Raises:
        TrackingError: when the store cannot be used, or the experiment has no search that found anything.
    """
    runs = _runs(replace(resolve(study), experiment=experiment))
    prefix = "best."
    for run in sorted(runs, key=lambda run: run.info.start_time, reverse=True):
        if "polyshot.best_trial" in run.data.tags:
            tags = {name: value for name, value in run.data.tags.items() if name.startswith(prefix)}
            return {name.removeprefix(prefix): _literal(value) for name, value in tags.items()}
    raise TrackingError(f"{key}: the MLflow experiment '{experiment}' has no search that found anything; name another")


def _literal(text: str) -> Any:
    """A tag's text as the value that was written."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _runs(store: Store) -> list[Run]:
    file = store.sqlite_file
    if file is not None and not file.exists():
        raise TrackingError(f"{store.origin}: there are no runs in {file} yet; run `polyshot train` first")
    store.check()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(store.uri)
        experiment = client.get_experiment_by_name(store.experiment)
        runs: list[Run] = []
        token: str | None = ""
        while experiment is not None and token is not None:
            page = client.search_runs([experiment.experiment_id], max_results=PAGE, page_token=token or None)
            runs += page
            token = page.token or None
    except MlflowException as error:
        reason = without_credentials(str(error).partition("\n")[0])
        raise TrackingError(f"{store.origin}: MLflow at {store.shown} failed ({reason}); mend the store") from error
    if not runs:
        raise TrackingError(
            f"{store.origin}: no runs of experiment '{store.experiment}' in {store.shown} yet; run `polyshot train` "
            "first, or `polyshot sync` if its events are still on disk"
        )
    return runs


def _numbers(values: pd.Series) -> pd.Series:
    """The column as numbers where all that is there is one."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    return numbers if numbers.notna().equals(values.notna()) else values
