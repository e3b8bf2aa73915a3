"""What the shell is offered where a command takes a study file or a run.

Called by the command line's completion, at every press of the key: it looks at names of files and folders and opens
none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from glob import escape
from pathlib import Path


def study_files(start: str) -> list[str]:
    """The study files whose path begins with `start`, here and in the folders below."""
    folder, slash, name = start.rpartition("/")
    home = Path(f"{folder}{slash}" or ".")
    patterns = (f"{escape(name)}*", f"{escape(name)}*/*")
    found = (path for pattern in patterns for path in home.glob(pattern) if path.suffix in (".yaml", ".yml"))
    return sorted(
        f"{folder}{slash}{path.relative_to(home)}" for path in found if not _is_hidden(path.relative_to(home))
    )


def runs(start: str, storage: Path) -> list[str]:
    """The studies in `storage` and the folders of their runs that begin with `start`, then study files."""
    return [name for name in _runs(storage) if name.startswith(start)] + [
        file for file in study_files(start) if not Path(file).is_relative_to(storage)
    ]


def _runs(storage: Path) -> Iterator[str]:
    folders = sorted({state.parent for state in storage.glob("*/*-*/run.json")})
    yield from dict.fromkeys(folder.parent.name for folder in folders)
    yield from map(str, folders)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
