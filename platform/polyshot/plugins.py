"""Objects that a study names as `package.module:name`: data sources, encoders, search spaces.

The study's own folder is importable, so that a module may stand beside the study file.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from polyshot.errors import RunError, did_you_mean


def load_object(path: str, folder: Path, place: str) -> Any:
    """The object that `path` names; `place` is the study's key that names it, for the error's words.

    Raises:
        RunError: when the module or the name is not there, or the module fails while it is imported.
    """
    module_name, _, name = path.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RunError(f"{place}: no module '{error.name}'; install it or put it beside the study file") from None
    except Exception as error:  # a user's module may raise anything
        raise RunError(f"{place}: importing '{module_name}' failed with {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise RunError(f"{place}: '{module_name}' has no '{name}'.{did_you_mean(name, dir(module))}") from None
