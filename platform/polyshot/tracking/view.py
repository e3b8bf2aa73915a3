"""Saved views of MLflow's UI: which runs its table shows, in which order, with which columns.

Called by the replay of events. Without one, the table has columns for times and sources, and none for what was
searched. The UI keeps views as tags of the experiment; the format is its own (MLflow 3), and a browser test holds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

_COLUMNS = 50  # MLflow takes 5,000 characters of an experiment's tag, and no screen shows as many


def saved_view(
    name: str, parent_id: str, metrics: Sequence[str], params: Sequence[str], *, ascending: bool, time: int
) -> tuple[str, str]:
    """The experiment's tag, and its value, of a view of a run's trials, ordered by the first metric.

    Args:
        name: of the view; of two with one name, the later stands.
        parent_id: MLflow's id of the run whose trials are shown.
        time: when the view was made, in Unix milliseconds.
    """
    columns = [*(f"metrics.`{metric}`" for metric in metrics), *(f"params.`{param}`" for param in params)][:_COLUMNS]
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_id}' AND tags.`polyshot.kind` = 'trial'",
        "orderByKey": columns[0],
        "orderByAsc": ascending,
        "selectedColumns": columns,
    }
    view = {"name": name, "createdAt": time, "updatedAt": time, "state": json.dumps(state)}
    return f"mlflow.sharedViewState.{name}", json.dumps(view)
