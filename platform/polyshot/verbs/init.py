"""`polyshot init`: a commented study file for a table, with tasks and kinds inferred."""

from __future__ import annotations

import os
import re
from pathlib import Path

from polyshot.data.infer import study_text
from polyshot.data.source import read_path
from polyshot.errors import RunError
from polyshot.study import Study


def init(source: str, output: Path, *, targets: list[str] | None = None, force: bool = False) -> Study:
    """Write a study file for the table at `source` to `output`; returns the study that it describes.

    Raises:
        DataError: when the table cannot be read, or has no such target.
        RunError: when `output` exists and `force` is not given, or cannot be written.
    """
    if output.exists() and not force:
        raise RunError(f"{output}: exists already; give another --output, or --force to overwrite it")
    table = read_path(source, Path.cwd())
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).name.split(".")[0]).strip("-") or "study"
    # The study reads its table relative to its own place.
    relative = os.path.relpath(Path(source).resolve(), output.resolve().parent)
    text = study_text(table, relative, name, targets=targets)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error.strerror}); choose another --output") from error
    return Study.load(output)
