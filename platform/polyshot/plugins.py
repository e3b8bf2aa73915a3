"""Objects that a study names as `package.module:name`: data sources, encoders, search spaces.

The study's own folder is importable, so that a module may stand beside the study file; of two studies in one process,
each has its own where they give their modules the same name. A folder with a module that is called as one of the
standard library's goes behind that: what a user calls `json.py` is no other library's.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from polyshot.errors import RunError, did_you_mean

_INSTALLED = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}  # the standard library is before them
_FOLDERS: set[Path] = set()  # of the studies that have named objects in this process


def load_object(path: str, folder: Path, place: str) -> Any:
    """The object that `path` names; `place` is the study's key that names it, for the error's words.

    Raises:
        RunError: when the module or the name is not there, or the module fails while it is imported.
    """
    module_name, _, name = path.partition(":")
    _put_first(folder.resolve(), module_name.partition(".")[0])
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


def _put_first(folder: Path, package: str) -> None:
    """Have `package` imported from `folder` if it is there, though another study's has been imported before."""
    studies = {*map(str, _FOLDERS), str(folder)}
    others = [entry for entry in sys.path if entry not in studies]
    place = 0
    if sys.stdlib_module_names & _own_names(folder):
        place = next((place for place, entry in enumerate(others) if entry in _INSTALLED), len(others))
    earlier = [entry for entry in sys.path if entry in studies - {str(folder)}]
    sys.path[:] = [*others[:place], str(folder), *others[place:], *earlier]
    importlib.invalidate_caches()  # the module may have been written a moment ago
    imported = sys.modules.get(package)
    if imported and _place(imported) in _FOLDERS - {folder} and PathFinder.find_spec(package, [str(folder)]):
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]
    _FOLDERS.add(folder)


def _own_names(folder: Path) -> set[str]:
    """What can be imported from a folder."""
    return {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}


def _place(module: ModuleType) -> Path | None:
    """The folder from which a module or package without parents was imported."""
    if module.__spec__ is None or module.__spec__.origin is None:
        return None
    origin = Path(module.__spec__.origin)
    return origin.parent.parent if module.__spec__.submodule_search_locations else origin.parent
