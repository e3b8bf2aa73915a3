"""`polyshot ui`: the MLflow UI over the store that runs are recorded in, on this machine only."""

from __future__ import annotations

from pathlib import Path

from polyshot.study import Study


def ui(study: Study | None = None, *, storage: str | Path = "polyshot-runs", port: int = 5000) -> None:
    """Serve the MLflow UI on loopback until it is stopped.

    Args:
        study: whose store is shown; without one, the local store in `storage`.

    Raises:
        TrackingError: when there is no store yet, or the port is taken.
    """
    from polyshot.tracking.ui import serve_ui

    serve_ui(study if study is not None else storage, port=port)
