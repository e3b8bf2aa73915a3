"""What a study is: the schema of the study file, strict and with a default for everything but name, data and tasks.

Every verb takes a `Study`. This package reads and checks files, a section of them in each module; it never reads the
data they name and imports neither torch nor Ray nor MLflow.
"""

from polyshot.study.study import Study, json_schema

__all__ = ["Study", "json_schema"]
