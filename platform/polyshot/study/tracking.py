"""`tracking`: where runs are recorded."""

from __future__ import annotations

from pydantic import Field

from polyshot.study.section import Section


class Tracking(Section):
    """Where runs are recorded. The address comes from here, else MLFLOW_TRACKING_URI, else a SQLite file in storage."""

    uri: str | None = Field(None, description="An MLflow tracking URI.")
    experiment: str | None = Field(None, description="The MLflow experiment; by default the study's name.")
    models: bool = Field(True, description="Log the trained model to MLflow.")
